"""Verbs that start from a recipe: recipes, plan, prepare, train, resume, run, tune."""

from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foldray.cli.options import Json, Overrides, Recipe
from foldray.cli.tables import plan_table, result_table, row_list
from foldray.config.recipes import load_recipe, recipe_names
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.runtime.terminal import print_json, print_status, print_table

if TYPE_CHECKING:
    from foldray.models.costs import DepthCost


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


def plan(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show paths, parameters, bytes and MACs of every depth. Needs no data and trains nothing.

    Example: foldray plan wav2vec2-base-8 fold.depths=[8,12]
    """
    spec = load_recipe(recipe, overrides)
    from foldray.models.costs import PLAN_VOCAB_SIZE, bytes_at_precisions, joint_cost, plan_costs

    vocab_size = spec.corpus.vocab_size or PLAN_VOCAB_SIZE
    model = spec.planned_model()
    costs = plan_costs(model, vocab_size)
    deepest = costs[-1]
    planned = {
        "num_layers": spec.fold.num_layers,
        "private": str(model.plan.private),
        "depths": [_depth_line(cost) for cost in costs],
        "params_stored": deepest.params_stored,
        "params_private": max(cost.params_private for cost in costs),
        "params_unrolled": deepest.params_unrolled,
        "bytes": bytes_at_precisions(model, vocab_size),
        "saved_percent": round(100 * (1 - deepest.params_stored / deepest.params_unrolled), 2),
        "joint": vars(joint_cost(model, vocab_size, spec.loss.sampled)),
    }
    if model.decoder:
        planned["decoder"] = {"num_layers": model.decoder.num_layers, "private": str(model.decoder.private)}
    if as_json:
        print_json(planned)
    else:
        plan_table(planned, drawn=spec.loss.sampled is not None)


def _depth_line(cost: "DepthCost") -> dict[str, Any]:
    values = {**vars(cost), "path": list(cost.path)}
    decoder_path = values.pop("decoder_path")
    return values if decoder_path is None else {**values, "decoder_path": list(decoder_path)}


def prepare(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Turn a corpus into shards, a manifest and a quarantine. Resumes where it was interrupted.

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
        "left_out": manifest.left_out.model_dump(),
    }
    if as_json:
        print_json(summary)


def train(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fold a model and train all depths. The same spec resumes its run.

    Example: foldray train an4 corpus.path=/data/an4 scale.workers=4
    """
    from foldray.stages.train import train_stage

    trained = train_stage(load_recipe(recipe, overrides))
    if as_json:
        print_json(trained)


def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN_URI", help="STORE/runs/RUN_ID or STORE/searches/SEARCH_ID, local or s3://.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of scale, checkpoint and tracking, such as scale.workers=4."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Resume an interrupted run or search from its last whole checkpoints, on any machine.

    Example: foldray resume s3://bucket/store/runs/an4-1a2b3c4d5e scale.workers=4
    """
    from foldray.stages.train import resume_stage
    from foldray.storage import absolute
    from foldray.storage.layout import SearchFolder

    if SearchFolder(absolute(run)).store:
        if overrides:
            raise UserError(
                overrides[0],
                "cannot change when a search is resumed; remove it, or start a new search with `foldray tune`",
            )
        _show_search(_tuning().resume_search(run), as_json)
        return
    trained = resume_stage(run, overrides or [])
    if as_json:
        print_json(trained)


def run(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Prepare, train, evaluate and report. Run again, it resumes, and skips what is already done.

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


def tune(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run the hyperparameter search of the recipe's `search` section. The same command resumes its search.

    Every trial is an ordinary run: `foldray results` and `foldray report` show it, `foldray resume` resumes it.

    Example: foldray tune quickstart-search search.trials=16 'search.objectives=[wer,bytes]'
    """
    _show_search(_tuning().tune_stage(load_recipe(recipe, overrides)), as_json)


def _tuning() -> ModuleType:
    from foldray.tuning import tune as tuning

    return tuning


def _show_search(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        row_list(sorted(result["rows"], key=lambda row: (row["depth"], row["wer"])))
        print_status(f"searched  {result['search']}")
