"""Counts of model shapes: those in the wheel, those in the cache, and their sums against torch's own counter."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from foldray.config.model import ModelSpec, PlannedModel
from foldray.config.recipes import load_recipe, recipe_names
from foldray.config.spec import RunSpec
from foldray.folding.plan import FoldPlan, Private
from foldray.models import shape_counts
from foldray.models.costs import MACS_SECONDS, PLAN_VOCAB_SIZE, bytes_at_precisions, joint_cost, plan_costs, shape_key
from foldray.models.count import _meta_inputs, count_spec, fold_on_meta
from foldray.models.count_model import count_bytes, count_kept_bytes, count_macs, count_parameters, count_private
from foldray.models.fold import set_depths, stack_of, unroll
from foldray.models.shape_counts import PRECISIONS, find_counts
from tests.support.tiny import CONFIGS, tiny_spec


def shapes() -> dict[str, str]:
    """A recipe for each shape: several recipes fold the same model to other depths."""
    specs = {name: load_recipe(name) for name in recipe_names()}
    return {json.dumps(key_of(spec)): name for name, spec in specs.items()}


def key_of(spec: RunSpec) -> dict[str, object]:
    return shape_key(spec.model, spec.corpus.vocab_size or PLAN_VOCAB_SIZE, spec.planned_model().decoder)


@pytest.mark.main
@pytest.mark.parametrize("recipe", list(shapes().values()))
def test_what_is_shipped_is_what_is_counted(recipe: str) -> None:
    spec = load_recipe(recipe)
    vocab_size = spec.corpus.vocab_size or PLAN_VOCAB_SIZE

    def count() -> Any:
        pytest.fail("run python -m foldray.models.count")

    shipped = find_counts(key_of(spec), count)
    assert shipped == count_spec(spec.planned_model(), vocab_size)


PLANS = [
    FoldPlan(3, (3, 6), private=Private(norms=True, lora_rank=4, film=True)),
    FoldPlan(3, (3, 4, 5, 8), order="cycle", private=Private(lora_rank=1)),
    FoldPlan(4, (4, 6, 8), order="group", groups=(2, 2), private=Private(film=True)),
    FoldPlan(3, (3,)),
    FoldPlan(2, (2, 3, 5), paths=((0, 1), (0, 0, 1), (0, 1, 1, 0, 1))),
]
NORMED = FoldPlan(3, (3, 5), order="cycle", private=Private(norms=True, statistics=True, lora_rank=2, film=True))
USUAL = ("parakeet", "wav2vec2", "wavlm-stable", "whisper")


def cases() -> list[Any]:
    """Every plan for the usual families; for the others one with all private parts: sums over paths know no family."""
    plans = [(name, plan) for name in CONFIGS for plan in (PLANS if name in USUAL else PLANS[:1])]
    plans += [(name, NORMED) for name in ("parakeet", "conformer", "wav2vec2-conformer")]
    tier = lambda name: pytest.mark.main if name in USUAL else pytest.mark.soak  # noqa: E731
    return [pytest.param(*case, marks=() if case[0] == "parakeet" else tier(case[0])) for case in plans]


@pytest.mark.main
@pytest.mark.parametrize(("name", "plan"), cases())
def test_sums_are_what_torch_counts_in_the_folded_model(name: str, plan: FoldPlan) -> None:
    spec = tiny_spec(name)
    model = fold_on_meta(spec, plan, 9)
    torch.nn.Module.eval(model)
    inputs = _meta_inputs(model)
    for cost in plan_costs(PlannedModel(spec, plan), 9):
        set_depths(model, cost.depth)
        assert cost.macs_per_audio_second == count_macs(model, inputs) / MACS_SECONDS
        assert cost.params_private == count_private(stack_of(model), cost.depth)
        assert cost.params_unrolled == count_parameters(unroll(model, cost.depth))
        assert (cost.params_stored, cost.bytes_stored) == (count_parameters(model), count_bytes(model))
    assert bytes_at_precisions(PlannedModel(spec, plan), 9) == {each: count_bytes(model, each) for each in PRECISIONS}
    set_depths(model, plan.depths)
    joint = joint_cost(PlannedModel(spec, plan), 9)
    assert joint.macs_per_audio_second == count_macs(model, inputs) / MACS_SECONDS
    assert joint.kept_bytes_per_audio_second == count_kept_bytes(model, inputs) / MACS_SECONDS


def test_a_step_that_draws_depths_is_summed_as_it_is_counted() -> None:
    """Of one drawn depth: the mean of both draws, and the most expensive one's activations."""
    spec, plan = tiny_spec("parakeet"), FoldPlan(3, (3, 4, 7, 8), private=Private(norms=True, lora_rank=2))
    model = fold_on_meta(spec, plan, 9)
    torch.nn.Module.eval(model)
    macs, kept = [], []
    for depths in ((3, 4, 8), (3, 7, 8)):
        set_depths(model, depths)
        macs.append(count_macs(model, _meta_inputs(model)) / MACS_SECONDS)
        kept.append(count_kept_bytes(model, _meta_inputs(model)) / MACS_SECONDS)
    cost = joint_cost(PlannedModel(spec, plan), 9, sampled=1)
    assert cost.macs_per_audio_second == pytest.approx(sum(macs) / 2, rel=1e-12)
    assert cost.kept_bytes_per_audio_second == max(kept)


def test_other_shapes_are_counted_once_and_a_damaged_cache_is_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shape_counts, "_COUNTED", {})
    spec: ModelSpec = tiny_spec("wav2vec2")
    counts = count_spec(PlannedModel(spec, FoldPlan(1, (1,))), 9)
    calls = []

    def count() -> Any:
        calls.append(1)
        return counts

    for damage in (None, "", "{}", '{"outside": 1}'):
        if damage is not None:
            (file,) = (tmp_path / "foldray").iterdir()
            assert json.loads(file.read_text()) == json.loads(json.dumps(asdict(counts)))
            file.write_text(damage)
        before = len(calls)
        for _ in range(2):
            monkeypatch.setattr(shape_counts, "_COUNTED", {})
            assert find_counts({"shape": "new"}, count) == counts
        assert len(calls) == before + 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(shape_counts, "_COUNTED", {})
    assert find_counts({"shape": "nowhere to keep it"}, count) == counts


PLAN_ONLY = """
import sys
from foldray.cli.main import main
try:
    main(["plan", "wav2vec2-base-8", "fold.depths=[8,12]", "fold.private=norms", "--json"])
except SystemExit as end:
    assert not end.code
heavy = {"torch", "transformers", "pyarrow", "boto3", "ray", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_a_shipped_recipe_is_planned_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PLAN_ONLY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["private"] == "norms"
