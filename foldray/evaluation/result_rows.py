"""From scores to what the store keeps: a row for each depth, a hypothesis for each utterance."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, TypedDict

from transformers import PreTrainedModel

from foldray.data.manifest import Manifest
from foldray.evaluation.provenance import FoundModel, Provenance, provenance
from foldray.evaluation.score import DepthScore, ScoredUtterance
from foldray.models.costs import DepthCost, costs_of
from foldray.models.families import family_of
from foldray.models.fold import stack_of
from foldray.models.save_load import stored_precision
from foldray.results.rows import SCHEMA_VERSION, Hypothesis, ResultRow


def result_rows(
    found: FoundModel,
    model: PreTrainedModel,
    manifest: Manifest,
    split: str,
    decoding: str,
    scores: Sequence[DepthScore],
) -> tuple[list[ResultRow], list[Hypothesis]]:
    """Describe the scores of one evaluation; all rows and hypotheses have the same `created`."""
    precision = stored_precision(found.uri)
    origin = provenance(found)
    costs = costs_of(model, [score.depth for score in scores], precision)
    shared = _shared_columns(model, manifest, split, decoding, precision)
    rows = [_row(found.name, score, cost, origin, shared) for score, cost in zip(scores, costs, strict=True)]
    hypotheses = [
        _hypothesis(row, utterance) for row, score in zip(rows, scores, strict=True) for utterance in score.utterances
    ]
    return rows, hypotheses


class _Shared(TypedDict):
    """The columns that all rows of one evaluation share."""

    kind: Literal["fold", "baseline"]
    family: str
    private: str
    num_layers: int
    decoding: str
    order: str
    corpus: str
    split: str
    language: str
    device: str
    precision: str
    created: str


def _shared_columns(model: PreTrainedModel, manifest: Manifest, split: str, decoding: str, precision: str) -> _Shared:
    plan = stack_of(model).plan
    languages = {name for shard in manifest.shards if shard.split == split for name in shard.languages}
    return {
        "kind": "fold" if len(plan.depths) > 1 else "baseline",
        "family": family_of(model).name,
        "private": str(plan.private),
        "num_layers": plan.num_layers,
        "decoding": decoding,
        "order": "paths" if plan.paths else plan.order,
        "corpus": manifest.corpus_id,
        "split": split,
        "language": "+".join(sorted(languages)),
        "device": str(model.device),
        "precision": precision,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _row(run_id: str, score: DepthScore, cost: DepthCost, origin: Provenance, shared: _Shared) -> ResultRow:
    assert cost.depth == score.depth
    return {
        **shared,
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "path": " ".join(map(str, cost.path)),
        "depth": score.depth,
        "trained": cost.trained,
        "wer": score.wer,
        "cer": score.cer,
        "num_utterances": len(score.utterances),
        "num_words": sum(utterance.num_words for utterance in score.utterances),
        "substitutions": sum(utterance.substitutions for utterance in score.utterances),
        "deletions": sum(utterance.deletions for utterance in score.utterances),
        "insertions": sum(utterance.insertions for utterance in score.utterances),
        "params_stored": cost.params_stored,
        "params_unrolled": cost.params_unrolled,
        "bytes_stored": cost.bytes_stored,
        "macs_per_audio_second": cost.macs_per_audio_second,
        "rtfx": score.rtfx,
        "peak_rss_bytes": score.peak_rss_bytes,
        # By name: the provenance of an export holds more.
        "recipe": origin["recipe"],
        "alpha": origin["alpha"],
        "beta": origin["beta"],
        "train_seconds": origin["train_seconds"],
        "train_audio_seconds": origin["train_audio_seconds"],
        "step": origin["step"],
        "seed": origin["seed"],
        "versions": origin["versions"],
        "git_commit": origin["git_commit"],
        "spec_hash": origin["spec_hash"],
    }


def _hypothesis(row: ResultRow, utterance: ScoredUtterance) -> Hypothesis:
    return {
        "run_id": row["run_id"],
        "step": row["step"],
        "depth": row["depth"],
        "corpus": row["corpus"],
        "split": row["split"],
        "decoding": row["decoding"],
        "id": utterance.id,
        "speaker": utterance.speaker,
        "reference": utterance.reference,
        "hypothesis": utterance.hypothesis,
        "num_words": utterance.num_words,
        "substitutions": utterance.substitutions,
        "deletions": utterance.deletions,
        "insertions": utterance.insertions,
        "alignment": utterance.alignment,
        "created": row["created"],
    }
