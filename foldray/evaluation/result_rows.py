"""From scores to what the store keeps: a row for each depth, a hypothesis for each utterance."""

from collections.abc import Sequence
from datetime import UTC, datetime

from transformers import PreTrainedModel

from foldray.data.manifest import Manifest
from foldray.evaluation.provenance import FoundModel, provenance
from foldray.evaluation.score import DepthScore, ScoredUtterance
from foldray.models.costs import costs_of
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
    plan = stack_of(model).plan
    precision = stored_precision(found.uri)
    origin = provenance(found)
    languages = {name for shard in manifest.shards if shard.split == split for name in shard.languages}
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    costs = {cost.depth: cost for cost in costs_of(model, [score.depth for score in scores], precision)}
    rows = [
        ResultRow(
            schema_version=SCHEMA_VERSION,
            run_id=found.name,
            kind="fold" if len(plan.depths) > 1 else "baseline",
            recipe=origin["recipe"],
            family=family_of(model).name,
            path=" ".join(map(str, costs[score.depth].path)),
            private=str(plan.private),
            alpha=origin["alpha"],
            beta=origin["beta"],
            num_layers=plan.num_layers,
            depth=score.depth,
            trained=costs[score.depth].trained,
            decoding=decoding,
            order="paths" if plan.paths else plan.order,
            corpus=manifest.corpus_id,
            split=split,
            language="+".join(sorted(languages)),
            wer=score.wer,
            cer=score.cer,
            num_utterances=len(score.utterances),
            num_words=sum(utterance.num_words for utterance in score.utterances),
            substitutions=sum(utterance.substitutions for utterance in score.utterances),
            deletions=sum(utterance.deletions for utterance in score.utterances),
            insertions=sum(utterance.insertions for utterance in score.utterances),
            params_stored=costs[score.depth].params_stored,
            params_unrolled=costs[score.depth].params_unrolled,
            bytes_stored=costs[score.depth].bytes_stored,
            macs_per_audio_second=costs[score.depth].macs_per_audio_second,
            rtfx=score.rtfx,
            peak_rss_bytes=score.peak_rss_bytes,
            train_seconds=origin["train_seconds"],
            train_audio_seconds=origin["train_audio_seconds"],
            step=origin["step"],
            seed=origin["seed"],
            device=str(model.device),
            precision=precision,
            created=created,
            versions=origin["versions"],
            git_commit=origin["git_commit"],
            spec_hash=origin["spec_hash"],
        )
        for score in scores
    ]
    hypotheses = [
        _hypothesis(row, utterance) for row, score in zip(rows, scores, strict=True) for utterance in score.utterances
    ]
    return rows, hypotheses


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
