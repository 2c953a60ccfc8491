"""From scores to what the store keeps: a row for each depth, a hypothesis for each utterance."""

from datetime import UTC, datetime
from typing import Any

from foldray.data.manifest import Manifest
from foldray.evaluation.provenance import FoundModel, provenance
from foldray.models.costs import costs_of
from foldray.models.families import family_of
from foldray.models.fold import stack_of
from foldray.models.save_load import stored_precision
from foldray.results.rows import Hypothesis, ResultRow


def result_rows(
    found: FoundModel, model: Any, manifest: Manifest, split: str, decoding: str, scores: list[Any]
) -> tuple[list[ResultRow], list[Hypothesis]]:
    plan = stack_of(model).plan
    precision = stored_precision(found.uri)
    costs = {cost.depth: cost for cost in costs_of(model, [score.depth for score in scores], precision)}
    shared = {
        "run_id": found.name,
        "kind": "fold" if len(plan.depths) > 1 else "baseline",
        "family": family_of(model).name,
        "private": str(plan.private),
        "num_layers": plan.num_layers,
        "order": "paths" if plan.paths else plan.order,
        "corpus": manifest.corpus_id,
        "split": split,
        "decoding": decoding,
        "language": "+".join(sorted({name for s in manifest.shards if s.split == split for name in s.languages})),
        "device": str(model.device),
        "precision": precision,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **provenance(found),
    }
    rows = [_row(score, costs[score.depth], shared) for score in scores]
    said = [(score.depth, utterance) for score in scores for utterance in score.utterances]
    place: dict[str, Any] = {
        name: shared[name] for name in ("run_id", "step", "corpus", "split", "decoding", "created")
    }
    return rows, [Hypothesis(depth=depth, **place, **vars(utterance)) for depth, utterance in said]


def _row(score: Any, cost: Any, shared: dict[str, Any]) -> ResultRow:
    said = score.utterances
    return ResultRow(
        **shared,
        path=" ".join(map(str, cost.path)),
        depth=score.depth,
        trained=cost.trained,
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
