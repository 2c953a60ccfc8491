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
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run id in the store, a run or checkpoint URI, a model folder, or OWNER/NAME of a fold on the hub.",
    ),
]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The store: a folder or s3://bucket/prefix.")]
Store = Annotated[
    str, typer.Option("--store", envvar="FOLDRAY_STORE", help="The store: a folder or s3://bucket/prefix.")
]
Decoding = Annotated[
    str | None,
    typer.Option(
        help="ctc (greedy); beam (beam search over CTC, with an n-gram or lists of words; its options imply it); "
        "hybrid models also: attention (beam search), joint (the decoder rescores CTC's best); default: ctc, or "
        "attention (greedy) for models without CTC, such as Whisper."
    ),
]
Beam = Annotated[int | None, typer.Option(help="How many prefixes the beam search keeps; default: 50.")]
Lm = Annotated[
    str | None,
    typer.Option(help="An n-gram: an ARPA file, may be .gz, may be s3://bucket/file; needs the extra lm."),
]
LmWeight = Annotated[float | None, typer.Option(help="Weight of the n-gram; default: 0.5.")]
WordBonus = Annotated[
    float | None,
    typer.Option(help="What each word adds, in nats; an n-gram alone prefers few words; default: 1.5."),
]
Hotwords = Annotated[
    str | None, typer.Option(help="Words to prefer: a text file with one on each line, or words with commas.")
]
HotwordWeight = Annotated[float | None, typer.Option(help="What each hotword adds, in nats; default: 10.")]
Words = Annotated[
    str | None,
    typer.Option(help="The only words that may be found: a text file, one on each line, or with commas."),
]
Recordings = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="Audio files, folders, patterns such as 'calls/*.wav', s3:// prefixes, or .jsonl manifests; with "
        "--format parquet also corpora.",
    ),
]
TextDepth = Annotated[
    str | None,
    typer.Option(help="The depth to run, or auto (see `foldray calibrate`); default: the deepest."),
]
TextFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="text; jsonl, srt, vtt and ctm have the times of words, jsonl and ctm also confidences; parquet: a "
        "job on Ray that writes shards of Parquet and JSON lines, and resumes.",
    ),
]
TextOut = Annotated[
    str | None,
    typer.Option("-o", "--out", help="A folder: one file for each recording, instead of stdout; or the shards."),
]
Language = Annotated[str, typer.Option(help="Language code for multilingual models, such as de; default: en.")]
Chunk = Annotated[
    float | None,
    typer.Option(
        help="Seconds that the model runs on at once; longer recordings are cut in pauses. Default: as long as the "
        "utterances of its training, 20 at most."
    ),
]
Splits = Annotated[str | None, typer.Option(help="Job: the splits of a corpus, such as train,valid; all.")]
JobWorkers = Annotated[
    int | None, typer.Option(help="Job: processes that hold the model; default: one for each CPU, or GPU.")
]
UseGpu = Annotated[bool, typer.Option("--use-gpu", help="Run on this machine's GPU; as a job, each process has one.")]
Agree = Annotated[
    float | None,
    typer.Option(help="Job: also write a corpus of what two depths agree on, up to this WER, such as 0.1."),
]
AgreeDepths = Annotated[
    str | None, typer.Option(help="Job: the two depths, such as 4,12; default: the shallowest and the deepest.")
]
DEFAULT_STORE = "./foldray-store"
