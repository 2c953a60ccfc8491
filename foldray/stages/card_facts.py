"""What the card of a published model says: result rows of its weights, costs, and where it came from."""

import json
from collections.abc import Sequence

from transformers import PreTrainedModel

from foldray import storage
from foldray.config.model import RUN
from foldray.config.run_files import read_run_facts, read_run_spec
from foldray.evaluation.provenance import FoundModel, provenance, run_id_of, trained_by, weights_digest
from foldray.models.costs import costs_of
from foldray.models.families import family_of
from foldray.models.fold import stack_of
from foldray.models.hub import is_page
from foldray.models.hub_license import License
from foldray.models.save_load import stored_precision
from foldray.results.model_card import Cost, ModelFacts
from foldray.results.reader import read_rows
from foldray.results.rows import ResultRow
from foldray.storage.layout import Run, Store

MOST_BASES = 16
"""How many runs that started from one another are followed to the checkpoint of the first."""


def base_model(found: FoundModel) -> str:
    """The hub name of the checkpoint that a model's training started from; "" for any other start."""
    run = trained_by(found)
    for _ in range(MOST_BASES):
        checkpoint = read_run_spec(run).model.checkpoint if run and storage.exists(Run(run).spec) else None
        if not checkpoint or not checkpoint.startswith(RUN):
            return checkpoint if checkpoint and _is_on_hub(checkpoint, run) else ""
        run = Store(found.store).run(checkpoint.removeprefix(RUN)).uri
    return ""


def rows_of(found: FoundModel, exported: PreTrainedModel, kind: str) -> list[ResultRow]:
    """The newest result row of these very weights on each test set, at each depth and by each decoding.

    Rows of the run's step count, and those of exports of it.

    Args:
        found: The model.
        exported: It, as it will be published.
        kind: `seed` or `int8`; each has rows of its own.
    """
    if not storage.is_folder(storage.absolute(found.store)):
        return []
    precision = "int8" if kind == "int8" else "float32"
    origin, digest = provenance(found), weights_digest(exported)
    run_id, of_run = run_id_of(found), precision == stored_precision(found.uri)
    rows = [
        row
        for row in read_rows(found.store)  # oldest first
        if row["precision"] == precision
        and (
            row["run_id"].endswith(f"-{digest}")
            or (of_run and (row["run_id"], row["step"]) == (run_id, origin["step"]))
        )
    ]
    # An evaluated export has rows of its own beside those of its run.
    return [*{(row["corpus"], row["split"], row["decoding"], row["depth"]): row for row in rows}.values()]


def model_facts(
    page: str,
    found: FoundModel,
    exported: PreTrainedModel,
    rows: Sequence[ResultRow],
    kind: str,
    base: str,
    license_: License,
) -> ModelFacts:
    """Collect what a card says of a model besides its rows.

    Args:
        page: OWNER/NAME of its page.
        found: The model.
        exported: It, as it will be published.
        rows: Its result rows.
        kind: `seed` or `int8`.
        base: Hub name of the checkpoint it started from, "" if there is none.
        license_: Its licence.
    """
    run = trained_by(found)
    return ModelFacts(
        page=page,
        family=family_of(exported).name,
        num_layers=stack_of(exported).plan.num_layers,
        costs=_costs(exported, rows, kind),
        is_stock=type(exported).__module__.startswith("transformers.") and kind == "seed",
        license=license_,
        base_model=base,
        text=read_run_spec(run).corpus.text if run else "",
        origin=_origin(found, run, exported, kind),
    )


def _costs(exported: PreTrainedModel, rows: Sequence[ResultRow], kind: str) -> list[Cost]:
    """The cost of each trained depth: from its result row, or counted, which takes seconds."""
    depths = stack_of(exported).plan.depths
    known = {row["depth"]: Cost.of(row) for row in rows}
    if known.keys() >= set(depths):
        return [known[depth] for depth in depths]
    return [
        Cost(cost.depth, cost.params_stored, cost.params_unrolled, cost.bytes_stored, cost.macs_per_audio_second)
        for cost in costs_of(exported, precision="int8" if kind == "int8" else None)
    ]


def _origin(found: FoundModel, run: str | None, exported: PreTrainedModel, kind: str) -> dict[str, str]:
    """The rows of the card's provenance table; what is unknown has an empty value."""
    known, plan = provenance(found), stack_of(exported).plan
    is_known = bool(known["recipe"])
    versions = json.loads(known["versions"] or "{}")
    started = (read_run_spec(run).model.checkpoint or "random weights") if run else ""
    return {
        "run": run_id_of(found),
        "recipe": known["recipe"],
        "training corpus": read_run_facts(run).corpus_id if run else "",
        "started from": "a local checkpoint" if run and not _is_public(started, run) else started,
        "order of blocks": "paths" if plan.paths else plan.order,
        "private parts": str(plan.private),
        "alpha, beta": f"{known['alpha']:g}, {known['beta']:g}" if is_known else "",
        "random seed": str(known["seed"]) if is_known else "",
        "steps": f"{known['step']:,}" if is_known else "",
        "audio in training, with repetitions": f"{known['train_audio_seconds'] / 3600:.2f} h" if is_known else "",
        "training time": f"{known['train_seconds'] / 3600:.2f} h" if is_known else "",
        "spec hash": known["spec_hash"],
        "commit of foldray": known["git_commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "stored as": "int8, one byte for each weight of matrices and convolutions" if kind == "int8" else "float32",
    }


def _is_public(checkpoint: str, run: str) -> bool:
    """Whether a start may be named on a page: a hub name, a run, or random weights, but no path of a machine."""
    return checkpoint == "random weights" or checkpoint.startswith(RUN) or _is_on_hub(checkpoint, run)


def _is_on_hub(checkpoint: str, run: str | None) -> bool:
    """Whether a run's checkpoint is a page of the hub: a local folder may have the same form, and training prefers it.

    The run says so; those that began before it did are asked whether there is such a folder here.
    """
    was_local = bool(run) and storage.exists(Run(str(run)).facts) and read_run_facts(str(run)).local_checkpoint
    return is_page(checkpoint) and not was_local and not storage.is_folder(checkpoint)
