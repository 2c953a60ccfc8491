"""A batch whose rows run at depths of their own gives each row what it gets where all run at its depth."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from foldray import FoldPlan
from foldray.errors import UserError
from foldray.folding.plan import Private
from foldray.models.families import FAMILIES
from foldray.models.fold import ctc_logits, set_depths
from foldray.models.row_depths import ctc_by_row, row_depths
from tests.support.tiny import CONFIGS, families, folded, inputs_for, noise

PRIVATE = Private(norms=True, lora_rank=4, film=True)
PLANS = {
    "in_place": FoldPlan(3, (3, 4, 6)),
    "cycle": FoldPlan(3, (3, 5, 7), order="cycle", private=PRIVATE),
    "paths": FoldPlan(2, (2, 4), paths=((0, 1), (0, 1, 1, 0))),
}
CTC = [name for name, (family, _) in CONFIGS.items() if FAMILIES[family].ctc]


def inputs(model: Any, lengths: Sequence[float]) -> dict[str, Tensor]:
    given = inputs_for(model, [noise(seconds, seed) for seed, seconds in enumerate(lengths)])
    given.pop("decoder_input_ids", None)
    return given


def by_row(model: Any, given: dict[str, Tensor], depths: Sequence[int], shortest: dict[str, Tensor]) -> list[Any]:
    """Every row's number and logits, each as often as it is handed out."""
    found: list[tuple[int, Tensor]] = []
    ctc_by_row(model, given, depths, shortest, lambda rows, logits: found.extend(zip(rows, logits, strict=True)))
    return sorted(found, key=lambda pair: pair[0])


@pytest.mark.parametrize("plan", list(PLANS.values()), ids=list(PLANS))
@pytest.mark.parametrize("name", families(CTC))
def test_every_row_equals_the_batch_at_its_depth(name: str, plan: FoldPlan) -> None:
    """In a batch of five (the family's masks, carried values) and of two.

    Most CPUs give the same bits. On some, kernels are chosen by the batch's size, and rows leave the batch on the way:
    wav2vec2-bert then differs in the last bit.
    """
    model = folded(name, plan)
    shallow, deep = plan.depths[0], plan.depths[-1]
    untrained = deep if plan.paths else deep + 1
    shortest = inputs(model, [0.5])
    for depths in ((deep, shallow, plan.depths[1], shallow, untrained), (deep, shallow)):
        given = inputs(model, (1.1, 0.7, 0.9, 1.0, 1.17)[: len(depths)])
        found = by_row(model, given, depths, shortest)
        assert [row for row, _ in found] == list(range(len(depths)))
        for row, logits_TV in found:
            set_depths(model, depths[row])
            with torch.no_grad():
                wanted_TV = ctc_logits(model(**given))[row]
            torch.testing.assert_close(logits_TV, wanted_TV, rtol=1e-5, atol=1e-6, msg=f"row {row}")


def test_shallow_rows_are_handed_out_while_deep_ones_still_run() -> None:
    model = folded("parakeet", FoldPlan(2, (2, 4, 6)))
    ran: list[str] = []
    block: Any = model.get_submodule("encoder.layers.0")
    block.register_forward_hook(lambda module, args, output: ran.append(f"{len(output)} rows"))
    hand_out = lambda rows, logits: ran.append(f"out {list(rows)}")  # noqa: E731
    ctc_by_row(model, inputs(model, [1, 1, 1, 1]), (6, 2, 4, 2), inputs(model, [0.5]), hand_out)
    # Paths 01, 0011 and 000111 begin alike; rows 1 and 3 are out after the seed's two blocks.
    assert ran[:3] == ["4 rows", "2 rows", "out [1, 3]"]
    assert ran[-1] == "out [0]"


def test_equal_depths_are_one_pass() -> None:
    model = folded("wav2vec2", FoldPlan(2, (2, 4)))
    given = inputs(model, [1.0, 0.8])
    calls: list[int] = []
    model.get_submodule("wav2vec2.encoder.layers.0").register_forward_hook(lambda m, a, o: calls.append(len(o)))
    with torch.no_grad(), row_depths(model, [4, 4]):
        logits = model(**given).logits
    set_depths(model, 4)
    with torch.no_grad():
        assert torch.equal(logits, model(**given).logits)
    assert calls == [2, 2, 2, 2]


def test_a_depth_without_a_path_is_refused_and_nothing_is_left_behind() -> None:
    model = folded("wav2vec2", FoldPlan(2, (2, 4)))
    given = inputs(model, [1.0, 0.8])
    with pytest.raises(UserError, match="depth 1 is shallower"), row_depths(model, [4, 1]):
        pass
    with pytest.raises(ValueError, match="3 depths for a batch of 2"), torch.no_grad(), row_depths(model, [2, 4, 4]):
        model(**given)
    with torch.no_grad():
        assert len(model(**given).logits) == 4  # both trained depths, as before


def test_families_with_ctc_are_all_here() -> None:
    assert len(CTC) >= 17
