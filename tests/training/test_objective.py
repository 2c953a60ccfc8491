"""What a step trains: drawn depths, weights of the terms, hybrid models, and all of it through a short training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import Batch, BatchLoader
from foldray.folding.loss import StepCounts, joint_attention_loss, joint_loss, matching_per_path
from foldray.models.fold import ctc_logits, set_depths, stack_of
from foldray.results.metrics import read_metrics
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.loop import train_model
from foldray.training.objective import Objective
from foldray.training.state import build_model
from tests.support.training import job_for, spec_for, weights

DEPTHS = (2, 3, 4, 5, 6)


def objective(prepared: tuple[str, Manifest], folder: Path, name: str, **loss: Any) -> tuple[Objective, Any, Batch]:
    """An objective over depths 2 to 6, its model, and a batch of two utterances."""
    job = job_for(name, prepared, folder, steps=2)
    spec = job.spec.model_copy(
        update={
            "fold": job.spec.fold.model_copy(update={"depths": DEPTHS}),
            "loss": job.spec.loss.model_copy(update=loss),
        }
    )
    model, _ = build_model(type(job)(spec, job.run, job.corpus, job.init), prepared[1].tokenizer)
    model.eval()
    loader = BatchLoader(read_index(*prepared, "train"), model, prepared[1].tokenizer, None, 0)
    return Objective(spec, model), model, loader.load(torch.tensor([0, 3]).numpy(), 0)


def test_drawn_depths_are_a_sandwich_and_a_function_of_the_step(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    every, *_ = objective(prepared, tmp_path, "parakeet")
    assert every.draw_depths(0, 0) == DEPTHS
    two, *_ = objective(prepared, tmp_path, "parakeet", sampled=1)
    drawn = [two.draw_depths(epoch, step) for epoch in range(3) for step in range(20)]
    assert drawn == [two.draw_depths(epoch, step) for epoch in range(3) for step in range(20)]
    assert all(depths[0] == 2 and depths[-1] == 6 and len(depths) == 3 for depths in drawn)
    assert {depths[1] for depths in drawn} == {3, 4, 5}
    none, *_ = objective(prepared, tmp_path, "parakeet", sampled=0)
    assert none.draw_depths(1, 1) == (2, 6)


@pytest.mark.parametrize(("progress", "ramp"), [(0.1, 0.5), (0.2, 1.0), (0.9, 1.0)])
def test_the_terms_add_up(progress: float, ramp: float, prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """Of a hybrid model with every option on, against the loss functions themselves."""
    options = {"alpha": 0.5, "alpha_between": 0.25, "beta": 0.3, "beta_warmup": 0.2, "hidden": 0.7, "ctc": 0.3}
    term, model, batch = objective(prepared, tmp_path, "conformer", **options, temperature=2.0, direction="reverse")
    counts = StepCounts(int(batch.num_labels_B.sum()), int(batch.frames_B.sum()), 2)
    with torch.no_grad():
        model(**batch.inputs)
        hidden_PBTD = stack_of(model).take_output().unflatten(0, (5, 2))
        output = model(**batch.inputs)
        total, parts_LP = term(output, batch, counts, progress)
        weights = {"alpha": [0.5, 0.25, 0.25, 0.25], "beta": 0.3 * ramp, "temperature": 2.0, "direction": "reverse"}
        ctc = joint_loss(
            ctc_logits(output).unflatten(0, (5, 2)),
            batch.frames_B,
            batch.labels_BU,
            batch.num_labels_B,
            counts,
            **weights,
        )
        assert batch.targets_BU is not None
        attention = joint_attention_loss(
            output.logits.unflatten(0, (5, 2)), batch.targets_BU, batch.num_labels_B + 1, counts.targets,
            smoothing=0.1, **weights,
        )  # fmt: skip
        hidden_P = matching_per_path(hidden_PBTD, batch.frames_B) / counts.frames
    expected = 0.3 * ctc.total + 0.7 * attention.total + 0.7 * ramp * hidden_P.sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert term.parts == ["ctc", "attention", "kl", "hidden"]
    kl_P = 0.3 * ctc.kl_P + 0.7 * attention.kl_P
    torch.testing.assert_close(parts_LP, torch.stack([ctc.task_P, attention.task_P, kl_P, hidden_P]))
    assert not parts_LP[2:, -1].any()
    assert parts_LP[2:, :-1].all()


def test_targets_of_a_decoder_are_its_inputs_moved_by_one(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    _, model, batch = objective(prepared, tmp_path, "conformer")
    tokenizer = prepared[1].tokenizer
    assert batch.targets_BU is not None
    for text, given, wanted in zip(batch.texts, batch.inputs["decoder_input_ids"], batch.targets_BU, strict=True):
        ids = tokenizer.encode(text)
        assert given[: len(ids) + 1].tolist() == [len(tokenizer), *ids]
        assert wanted[: len(ids) + 1].tolist() == [*ids, len(tokenizer)]
    assert model.config.vocab_size == len(tokenizer) + 1


def test_only_the_depths_that_ran_are_trained(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    term, model, batch = objective(prepared, tmp_path, "parakeet", sampled=1)
    set_depths(model, term.draw_depths(0, 0))
    _, parts_LP = term(model(**batch.inputs), batch, StepCounts(5, 5, 2), 0.5)
    assert parts_LP.shape == (2, 3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("conformer", marks=pytest.mark.main),
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("parakeet", "wav2vec2-stable")),
    ],
)
def test_drawn_depths_and_private_parts_resume_bit_equal(
    name: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    """With bfloat16 autocast, every option of the loss, and parts that some steps do not reach."""
    spec = spec_for(name, epochs=2)
    fold = {"depths": (2, 3, 4, 5), "private": "norms+lora+film", "lora_rank": 4}
    spec = spec.model_copy(
        update={
            "fold": spec.fold.model_copy(update=fold),
            "loss": spec.loss.model_copy(update={"sampled": 1, "hidden": 0.1, "beta_warmup": 0.3}),
            "precision": "bfloat16",
        }
    )
    runs = []
    for part, stop in (("whole", 0), ("cut", 4)):
        job = job_for(name, prepared, tmp_path / part)
        job = type(job)(spec, job.run, job.corpus, job.init)
        if stop:

            def die(record: dict[str, Any], stop: int = stop) -> None:
                if record["step"] == stop:
                    raise InterruptedError

            with pytest.raises(InterruptedError):
                train_model(job, WorkerContext(), LoopHooks(die))
        trained = train_model(type(job)(spec, job.run, job.corpus, job.init), WorkerContext())
        assert trained.resumed_from_step == (3 if stop else 0)
        runs.append(job.run)
    whole, cut = (read_metrics(run) for run in runs)
    assert [list(record["kl"]) for record in whole] == [list(record["kl"]) for record in cut]
    assert {len(record["kl"]) for record in whole} == {3}
    ours, theirs = map(weights, runs)
    assert any(".private." in key for key in ours)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
