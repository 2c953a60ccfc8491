"""The stages of the pipeline, each a function from a spec (or a model) to what it left in the store."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from foldray import storage
from foldray.data.manifest import Manifest, read_manifest
from foldray.errors import UserError
from foldray.results.metrics import read_metrics
from foldray.results.rows import Hypothesis, ResultRow, newest_rows, read_rows, write_rows
from foldray.spec import BUILTIN_CORPUS, CorpusSpec, RunSpec, build_spec
from foldray.terminal import counting, say, training_bar


def check_before_start(spec: RunSpec) -> None:
    """Refuse what can be known to fail before Ray starts. Raises UserError naming the field."""
    if spec.corpus.path != BUILTIN_CORPUS and not storage.is_folder(storage.absolute(spec.corpus.path)):
        raise UserError(
            "corpus.path",
            f"{spec.corpus.path} is not there; give corpus.path=FOLDER with train.jsonl and test.jsonl",
        )
    storage.check_writable(storage.absolute(spec.storage.root), "storage.root")


# --- Prepare and train -----------------------------------------------------------------------------


def prepare_stage(spec: RunSpec) -> tuple[str, Manifest]:
    """The prepared corpus of a spec, made if it is not there: its URI and manifest."""
    check_before_start(spec)
    return _prepare(spec.corpus, spec.storage.root)


def _prepare(corpus: CorpusSpec, root: str) -> tuple[str, Manifest]:
    from foldray.data.prepare import prepare

    if corpus.path == BUILTIN_CORPUS:
        say("corpus    the built-in voices (eSpeak NG), made on this machine if not made before")
    with counting("preparing") as on_progress:
        folder, manifest = prepare(corpus, root, on_progress=on_progress)
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
    kept = f"{manifest.utterances_out} of {manifest.utterances_in} utterances, {manifest.hours * 60:.0f} minutes"
    say(f"prepared  {kept}, {manifest.quarantined} quarantined{f' ({reasons})' if reasons else ''}: {folder}")
    return folder, manifest


def train_stage(spec: RunSpec) -> dict[str, Any]:
    """Prepare if need be, then train to the end or go on: run_id, run, step, resumed_from_step."""
    from foldray.pretrained import check_model
    from foldray.training.launch import train

    check_before_start(spec)
    check_model(spec.model, spec.fold.num_layers)
    corpus, _ = _prepare(spec.corpus, spec.storage.root)

    with training_bar() as on_record:
        trained = train(spec, corpus, on_record=on_record)
    say(f"trained   {trained.step} steps{_resumed(trained.step, trained.resumed_from_step)}: {trained.run}")
    return {
        "run_id": trained.run_id,
        "run": trained.run,
        "step": trained.step,
        "resumed_from_step": trained.resumed_from_step,
    }


def _resumed(step: int, resumed_from: int) -> str:
    if resumed_from == step:
        return " (done before)"
    return f" (resumed from step {resumed_from})" if resumed_from else ""


# --- Evaluate --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundModel:
    """A model folder, and the run it came from where there is one."""

    uri: str
    name: str
    store: str
    run: str | None


def find_model(model: str, store: str) -> FoundModel:
    """The model folder behind a run id, a run URI or a folder. Raises UserError listing what there is."""
    from foldray.pretrained import FOLD_FILE

    root = storage.absolute(store)
    for place in (storage.absolute(model), storage.join(root, "runs", model)):
        name = place.rstrip("/").rsplit("/", 1)[-1]
        if storage.exists(storage.join(place, "model", FOLD_FILE)):
            home = place.rsplit("/runs/", 1)[0] if "/runs/" in place else root
            return FoundModel(storage.join(place, "model"), name, home, place)
        if storage.exists(storage.join(place, FOLD_FILE)):
            return FoundModel(place, name, root, None)
    runs = storage.list_folders(storage.join(root, "runs"))
    known = f"finished or not, the store {root} has {', '.join(runs)}" if runs else f"the store {root} has no runs"
    raise UserError(model, f"is no finished run and no model folder; {known}")


def evaluate_stage(
    model: str, store: str, data: str | None = None, depths: tuple[int, ...] = (), split: str = "test"
) -> dict[str, Any]:
    """Score a model at every depth and append the rows: run_id and rows."""
    found = find_model(model, store)
    folder = _scoring_corpus(found, data, split)
    return {"run_id": found.name, "rows": _evaluate(found, folder, depths, split)}


def _scoring_corpus(found: FoundModel, data: str | None, split: str) -> str:
    """The prepared corpus to score on: named, prepared now from a raw one, or the run's own."""
    if data is None:
        if found.run is None:
            raise UserError("--data", f"say which corpus to score {found.uri} on")
        return str(storage.read_json(storage.join(found.run, "run.json"))["corpus"])
    if storage.exists(storage.join(storage.absolute(data), "manifest.json")):
        return storage.absolute(data)
    known = storage.join(found.store, "corpora", data)
    if storage.exists(storage.join(known, "manifest.json")):
        return known
    if data != BUILTIN_CORPUS and not storage.is_folder(storage.absolute(data)):
        raise UserError("--data", f"{data} is neither a prepared corpus nor a folder with {split}.jsonl")
    # Text must be normalised as the model learned it.
    like = read_run_spec(found.run).corpus if found.run else CorpusSpec(path=data)
    corpus = like.model_copy(update={"path": data, "layout": "auto", "splits": (split,)})
    return _prepare(corpus, found.store)[0]


def _evaluate(found: FoundModel, corpus: str, depths: tuple[int, ...], split: str) -> list[dict[str, Any]]:
    from foldray.evaluation.score import score_depths
    from foldray.models import stack_of
    from foldray.pretrained import load_model, read_vocabulary

    manifest = read_manifest(corpus)
    model = load_model(found.uri)
    with counting("scoring") as on_progress:
        chosen = depths or stack_of(model).plan.depths
        vocabulary = read_vocabulary(found.uri)
        scores = score_depths(model, vocabulary, corpus, manifest, split, chosen, on_progress=on_progress)
    rows, hypotheses = _result_rows(found, model, manifest, split, scores)
    write_rows(found.store, rows, hypotheses)
    return [row.model_dump() for row in rows]


def _result_rows(
    found: FoundModel, model: Any, manifest: Manifest, split: str, scores: list[Any]
) -> tuple[list[ResultRow], list[Hypothesis]]:
    from foldray.models import family_of, stack_of
    from foldray.pretrained import costs_of

    plan = stack_of(model).plan
    costs = {cost.depth: cost for cost in costs_of(model)}
    shared = {
        "run_id": found.name,
        "kind": "fold" if len(plan.depths) > 1 else "baseline",
        "family": family_of(model).name,
        "private": "none",
        "num_layers": plan.num_layers,
        "order": "paths" if plan.paths else plan.order,
        "corpus": manifest.corpus_id,
        "split": split,
        "language": "+".join(sorted({name for s in manifest.shards if s.split == split for name in s.languages})),
        "device": str(model.device),
        "precision": "float32",
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **_provenance(found.run),
    }
    rows = [_row(score, costs[score.depth], shared) for score in scores]
    said = [(score.depth, utterance) for score in scores for utterance in score.utterances]
    place: dict[str, Any] = {"run_id": found.name, "corpus": manifest.corpus_id, "split": split}
    return rows, [Hypothesis(depth=depth, **place, **vars(utterance)) for depth, utterance in said]


def _row(score: Any, cost: Any, shared: dict[str, Any]) -> ResultRow:
    said = score.utterances
    return ResultRow(
        **shared,
        path=" ".join(map(str, cost.path)),
        depth=score.depth,
        wer=score.wer,
        cer=score.cer,
        num_utterances=len(said),
        num_words=sum(u.num_words for u in said),
        substitutions=sum(u.substitutions for u in said),
        deletions=sum(u.deletions for u in said),
        insertions=sum(u.insertions for u in said),
        params_stored=cost.params_stored,
        params_unrolled=cost.params_unrolled,
        bytes_stored=cost.bytes_stored,
        macs_per_audio_second=cost.macs_per_audio_second,
        rtfx=score.rtfx,
        peak_rss_bytes=score.peak_rss_bytes,
    )


def _provenance(run: str | None) -> dict[str, Any]:
    """What the run says of itself; zeros and blanks for a folder without a run."""
    if run is None:
        nothing = dict.fromkeys(("recipe", "versions", "git_commit", "spec_hash"), "")
        return {
            **nothing,
            **dict.fromkeys(("alpha", "beta", "train_seconds", "train_audio_seconds"), 0.0),
            "step": 0,
            "seed": 0,
        }
    spec = read_run_spec(run)
    facts = storage.read_json(storage.join(run, "run.json"))
    metrics = read_metrics(run)
    return {
        "recipe": spec.name,
        "alpha": spec.loss.alpha,
        "beta": spec.loss.beta,
        "train_seconds": sum(record["seconds"] for record in metrics),
        "train_audio_seconds": sum(record["audio_seconds"] for record in metrics),
        "step": metrics[-1]["step"],
        "seed": spec.seed,
        "versions": json.dumps(facts["versions"]),
        "git_commit": facts["git_commit"],
        "spec_hash": facts["spec_hash"],
    }


def read_run_spec(run: str) -> RunSpec:
    """The spec a run was started with."""
    file = storage.join(run, "spec.json")
    return build_spec(storage.read_json(file), file)


# --- The main job ----------------------------------------------------------------------------------


def run_stage(spec: RunSpec, split: str = "test") -> dict[str, Any]:
    """Prepare, train, evaluate, report; whatever is there already is kept. Returns run_id, rows, report."""
    trained = train_stage(spec)
    found = find_model(trained["run"], spec.storage.root)
    rows = [row for row in newest_rows(read_rows(found.store)) if _is_of(row, trained, split)]
    if not rows:
        rows = evaluate_stage(trained["run"], spec.storage.root, split=split)["rows"]
    return {"run_id": trained["run_id"], "rows": sorted(rows, key=lambda row: row["depth"])}


def _is_of(row: dict[str, Any], trained: dict[str, Any], split: str) -> bool:
    corpus = storage.read_json(storage.join(trained["run"], "run.json"))["corpus_id"]
    return bool(row["run_id"] == trained["run_id"] and row["corpus"] == corpus and row["split"] == split)


# --- Transcribe ------------------------------------------------------------------------------------


def transcribe_stage(model: str, store: str, files: Sequence[str], depth: int | None) -> list[dict[str, str]]:
    """What each audio file says, at one depth (the deepest by default). Raises UserError naming a bad file."""
    from foldray.evaluation.decode import transcribe

    found = find_model(model, store)
    return [{"file": file, "text": text} for file, text in zip(files, transcribe(found.uri, files, depth), strict=True)]
