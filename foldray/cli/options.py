"""Arguments and options that several verbs share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout; everything else goes to stderr.")]
Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe (see `foldray recipes`) or a YAML/JSON file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Spec fields, such as fold.depths=[6,9,12] optim.lr=3e-4."),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run id in the store, a run or checkpoint URI, or a model folder.")
]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The store: a folder or s3://bucket/prefix.")]
Store = Annotated[
    str, typer.Option("--store", envvar="FOLDRAY_STORE", help="The store: a folder or s3://bucket/prefix.")
]
Decoding = Annotated[
    str,
    typer.Option(
        help="ctc (greedy); hybrid models also: attention (beam search), joint (the decoder rescores CTC's best)."
    ),
]
DEFAULT_STORE = "./foldray-store"
