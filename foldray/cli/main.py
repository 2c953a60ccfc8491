"""The command line: `foldray STAGE RECIPE key=value …`. Heavy imports wait until a stage needs them."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from foldray.cli.exits import run_command
from foldray.cli.results import Json, results
from foldray.cli.tables import plan_table, result_table, row_list
from foldray.config.recipes import load_recipe, recipe_names
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.runtime.terminal import counting, output, print_json, print_status, print_table

app = typer.Typer(
    name="foldray",
    help="Fold speech models: one file of the seed's size serves every depth.\n\nStart with: foldray run quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Recipe = Annotated[str, typer.Argument(help="A shipped recipe (see `foldray recipes`) or a YAML/JSON file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Spec fields, such as fold.depths=[6,9,12] optim.lr=3e-4."),
]
Store = Annotated[
    str, typer.Option("--store", envvar="FOLDRAY_STORE", help="The store: a folder or s3://bucket/prefix.")
]
Decoding = Annotated[
    str, typer.Option(help="ctc (greedy); of a hybrid model also attention, or joint: the decoder rescores CTC's best.")
]
DEFAULT_STORE = "./foldray-store"


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the shipped recipes.

    Example: foldray recipes
    """
    specs = [load_recipe(name) for name in recipe_names()]
    if as_json:
        print_json({"recipes": [{"name": spec.name, "about": spec.about} for spec in specs]})
    else:
        print_table("", ["recipe", "family", "depths", "about"], [_recipe_line(spec) for spec in specs])


def _recipe_line(spec: RunSpec) -> list[str]:
    depths = f"{spec.fold.num_layers} -> {', '.join(map(str, spec.fold.depths))}"
    return [spec.name, spec.model.family, depths, spec.about]


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show paths, parameters, bytes and MACs of every depth; needs no data and trains nothing.

    Example: foldray plan wav2vec2-base-8 fold.depths=[8,12]
    """
    spec = load_recipe(recipe, overrides)
    from foldray.models.costs import PLAN_VOCAB_SIZE, bytes_at_precisions, joint_cost, plan_costs

    vocab_size = spec.corpus.vocab_size or PLAN_VOCAB_SIZE
    model, folded = spec.found_model(), spec.fold.plan()
    costs = plan_costs(model, folded, vocab_size)
    deepest = costs[-1]
    planned = {
        "num_layers": spec.fold.num_layers,
        "private": str(folded.private),
        "depths": [{**vars(cost), "path": list(cost.path)} for cost in costs],
        "params_stored": deepest.params_stored,
        "params_private": max(cost.params_private for cost in costs),
        "params_unrolled": deepest.params_unrolled,
        "bytes": bytes_at_precisions(model, folded, vocab_size),
        "saved_percent": round(100 * (1 - deepest.params_stored / deepest.params_unrolled), 2),
        "joint": vars(joint_cost(model, folded, vocab_size, spec.loss.sampled)),
    }
    if as_json:
        print_json(planned)
    else:
        plan_table(planned, drawn=spec.loss.sampled is not None)


@app.command()
def prepare(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Turn a corpus into shards, a manifest and a quarantine; goes on where it was stopped.

    Example: foldray prepare an4 corpus.path=/data/an4
    """
    from foldray.stages.prepare import prepare_stage
    from foldray.storage.layout import PreparedCorpus

    folder, manifest = prepare_stage(load_recipe(recipe, overrides))
    summary = {
        "manifest": PreparedCorpus(folder).manifest,
        "utterances_in": manifest.utterances_in,
        "utterances_out": manifest.utterances_out,
        "quarantined": manifest.quarantined,
        "splits": manifest.rows_by_split,
        "hours": manifest.hours,
        "reasons": manifest.reasons,
    }
    if as_json:
        print_json(summary)


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fold and train; the same spec goes on with its run.

    Example: foldray train an4 corpus.path=/data/an4 scale.workers=4
    """
    from foldray.stages.train import train_stage

    trained = train_stage(load_recipe(recipe, overrides))
    if as_json:
        print_json(trained)


@app.command()
def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN_URI", help="STORE/runs/RUN_ID or STORE/searches/SEARCH_ID, local or s3://.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Fields of scale, checkpoint and tracking, such as scale.workers=4."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with an interrupted training or search from its last whole checkpoints, on any machine.

    Example: foldray resume s3://bucket/store/runs/an4-1a2b3c4d5e scale.workers=4
    """
    from foldray.stages.train import resume_stage
    from foldray.storage import absolute
    from foldray.storage.layout import SearchFolder

    if SearchFolder(absolute(run)).store:
        if overrides:
            raise UserError(overrides[0], "a search goes on as it began; `foldray tune` takes fields")
        _show_search(_tuning().resume_search(run), as_json)
        return
    trained = resume_stage(run, overrides or [])
    if as_json:
        print_json(trained)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run id in the store, a run or checkpoint URI, or a model folder.")],
    data: Annotated[
        str | None,
        typer.Option(help="A prepared or raw corpus; default: that of its run, if the store has it."),
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Depths to score, such as 6,12, trained or not; default: all trained.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    decoding: Decoding = "ctc",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Score a model at every depth and add the rows to the store.

    Example: foldray evaluate an4-1a2b3c4d5e --data ./my-corpus --depths 6,12
    """
    from foldray.stages.evaluate import evaluate_stage

    scored = evaluate_stage(model, store, data, _depths(depths), split, decoding)
    if as_json:
        print_json(scored)
    else:
        result_table(scored["rows"])


def _depths(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError("--depths", f"'{text}' is not a list of numbers such as 6,12") from None


@app.command()
def run(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Prepare, train, evaluate and report: the whole job. Run again, it goes on or reuses what is there.

    Example: foldray run quickstart
    """
    from foldray.results.report import write_report
    from foldray.stages.run import run_stage

    spec = load_recipe(recipe, overrides)
    result = run_stage(spec)
    page = write_report(spec.storage.root, None)
    print_status(f"report    {page}")
    if as_json:
        print_json(result)
    else:
        result_table(result["rows"])


@app.command()
def tune(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Search what the recipe's `search` section names; the same command goes on with its search.

    Every trial is an ordinary run: `foldray results` and `foldray report` show them, `foldray resume` goes on with one.

    Example: foldray tune quickstart-search search.trials=16 'search.objectives=[wer,bytes]'
    """
    _show_search(_tuning().tune_stage(load_recipe(recipe, overrides)), as_json)


def _tuning() -> Any:
    from foldray.tuning import tune as tuning

    return tuning


def _show_search(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        row_list(sorted(result["rows"], key=lambda row: (row["depth"], row["wer"])))
        print_status(f"searched  {result['search']}")


app.command()(results)


@app.command()
def report(
    store: Annotated[str, typer.Argument(help="The store: a folder or s3://bucket/prefix.")],
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILTER]...", help="Rows to report, such as run_id~an4 (as in `results ls`)."),
    ] = None,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Folder for the page; default: STORE/report.")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page with tables and plots.

    Example: foldray report ./foldray-store -o ./report
    """
    from foldray.results.report import write_report

    page = write_report(store, out, filters or ())
    if as_json:
        print_json({"report": page})
    else:
        output.print(page, markup=False, soft_wrap=True)


@app.command()
def transcribe(
    model: Annotated[str, typer.Argument(help="A run id in the store, a run or checkpoint URI, or a model folder.")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Audio files.")],
    depth: Annotated[int | None, typer.Option(help="Which depth to run; default: the deepest.")] = None,
    decoding: Decoding = "ctc",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write down what audio files say.

    Example: foldray transcribe an4-1a2b3c4d5e hello.wav --depth 6
    """
    from foldray.stages.transcribe import transcribe_stage

    texts = transcribe_stage(model, store, files, depth, decoding)
    if as_json:
        print_json({"texts": texts})
    for entry in texts:
        if "error" in entry:
            print_status(f"{entry['file']}: {entry['error']}")
        elif not as_json:
            output.print(f"{entry['file']}: {entry['text'] or '(nothing)'}", markup=False, soft_wrap=True)
    if any("error" in entry for entry in texts):
        raise typer.Exit(2)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run id in the store, a run or checkpoint URI, or a model folder.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="seed: the fold, which stock transformers opens as its shallowest depth; unrolled: one depth as a "
            "stock model (the hybrid conformer's class is foldray's own); onnx: the CTC logits of one depth; int8: the "
            "fold, one byte a weight.",
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="A new folder, or s3://bucket/prefix.")],
    depth: Annotated[int | None, typer.Option(help="Which depth, of unrolled and onnx; default: the deepest.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a model to deploy. A fold, also as int8, is a MODEL for evaluate and transcribe.

    Example: foldray export an4-1a2b3c4d5e --format unrolled --depth 6 -o ./an4-6
    """
    from foldray.stages.export import export_model

    exported = export_model(model, store, kind, out, depth)
    if as_json:
        print_json(exported)
        return
    print_table("", ["file", "bytes"], [[name, f"{size:,}"] for name, size in exported["files"].items()])
    output.print(f"{exported['model']}: depth {', '.join(map(str, exported['depths']))}", markup=False, soft_wrap=True)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe whose model, corpus and workers are checked too.")
    ] = None,
    overrides: Overrides = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="The store, without a recipe; default: $FOLDRAY_STORE or ./foldray-store."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check packages, Ray, every node's devices, storage and audio decoding; say what to mend. Exits 1 if anything is.

    Example: foldray doctor an4 corpus.path=/data/an4 storage.root=s3://bucket/store
    """
    from foldray.cli.doctor import examine

    if recipe and store:
        raise UserError("--store", "a recipe has a store of its own; say storage.root=… instead")
    spec = load_recipe(recipe, overrides) if recipe else None
    root = store or (spec.storage.root if spec else os.environ.get("FOLDRAY_STORE", DEFAULT_STORE))
    checks = []
    with counting("looking") as on_progress:
        for check in examine(spec, root):
            checks.append(check)
            on_progress(len(checks), len(checks) + 1)
    if as_json:
        print_json({"ok": all(check.ok for check in checks), "checks": [vars(check) for check in checks]})
    else:
        rows = [[check.name, check.where, "ok" if check.ok else "MEND", check.found] for check in checks]
        print_table("", ["check", "node", "", "found"], rows)
        for check in checks:
            if not check.ok:
                print_status(f"{check.name}{f' on {check.where}' if check.where else ''}: {check.mend}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits 0 when done, 2 for wrong input (one line on stderr), 1 for anything else."""
    run_command(app, arguments)
