"""Paths of every order, by hand; impossible plans name the field."""

import subprocess
import sys

import pytest

from foldray import FoldPlan
from foldray.folding.plan import Private, check_pairs, decoder_depth


@pytest.mark.parametrize(
    ("plan", "depth", "path"),
    [
        (FoldPlan(3, (3, 6)), 3, "012"),
        (FoldPlan(3, (3, 6)), 6, "001122"),
        (FoldPlan(8, (8, 12)), 12, "012344556677"),
        (FoldPlan(3, (3, 4, 7)), 4, "0122"),
        (FoldPlan(3, (3, 4, 7)), 7, "0011222"),
        (FoldPlan(3, (3, 6), order="cycle"), 6, "012012"),
        (FoldPlan(3, (3, 4), order="cycle"), 4, "0120"),
        (FoldPlan(4, (4, 8), order="group", groups=(2, 2)), 8, "01012323"),
        (FoldPlan(4, (4, 6), order="group", groups=(2, 2)), 6, "012323"),
        (FoldPlan(4, (4, 6), keep_first=1, keep_last=1), 6, "011223"),
        (FoldPlan(4, (4, 7), keep_first=1), 7, "0112233"),
        (FoldPlan(5, (5, 9), order="cycle", keep_last=1), 9, "012301234"),
        (FoldPlan(2, (2, 3), paths=((0, 1), (1, 0, 1))), 3, "101"),
    ],
)
def test_paths(plan: FoldPlan, depth: int, path: str) -> None:
    assert plan.path(depth) == tuple(map(int, path))
    assert len(plan.path(depth)) == depth
    assert plan.path(plan.num_layers) == tuple(range(plan.num_layers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0, "depths": (0,)}, "num_layers"),
        ({"num_layers": 3, "depths": ()}, "depths"),
        ({"num_layers": 3, "depths": (3, 2)}, "depths.*ascend"),
        ({"num_layers": 3, "depths": (3, 6, 6)}, "depths.*repeats"),
        ({"num_layers": 3, "depths": (4, 6)}, "depths.*seed.*num_layers = 3"),
        ({"num_layers": 3, "depths": (3, 6), "order": "spiral"}, "order"),
        ({"num_layers": 3, "depths": (3, 6), "keep_first": 2, "keep_last": 1}, "keep_first"),
        ({"num_layers": 3, "depths": (3, 6), "order": "group", "groups": (2, 2)}, "groups"),
        ({"num_layers": 3, "depths": (3, 6), "order": "group"}, "groups"),
        ({"num_layers": 3, "depths": (3, 6), "groups": (1, 2)}, "groups"),
        ({"num_layers": 2, "depths": (2, 3), "paths": ((0, 1), (0, 1))}, "paths.*lengths"),
        ({"num_layers": 2, "depths": (2, 3), "paths": ((1, 0), (0, 1, 1))}, "paths.*first"),
        ({"num_layers": 2, "depths": (2, 3), "paths": ((0, 1), (0, 1, 2))}, "paths.*outside"),
    ],
)
def test_impossible_plans_name_the_field(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FoldPlan(**arguments)


def test_the_rule_reaches_depths_that_are_not_planned() -> None:
    assert FoldPlan(3, (3, 6)).path(8) == (0, 0, 1, 1, 1, 2, 2, 2)
    assert FoldPlan(3, (3, 6), order="cycle").path(7) == (0, 1, 2, 0, 1, 2, 0)


@pytest.mark.parametrize(
    ("plan", "depth"),
    [
        (FoldPlan(3, (3, 6)), 2),
        (FoldPlan(2, (2, 3), paths=((0, 1), (1, 0, 1))), 4),
        (FoldPlan(2, (2,), keep_first=1, keep_last=1), 3),
    ],
)
def test_a_depth_without_a_path_is_a_key_error(plan: FoldPlan, depth: int) -> None:
    with pytest.raises(KeyError, match=f"depth {depth}"):
        plan.path(depth)


def test_uses_are_counted_over_the_deepest_need() -> None:
    plan = FoldPlan(3, (3, 4, 6), paths=((0, 1, 2), (0, 0, 0, 1), (0, 1, 1, 2, 2, 2)))
    assert plan.uses() == (3, 2, 3)
    assert plan.uses([3]) == (1, 1, 1)


def test_a_depth_of_the_decoder_belongs_to_one_of_the_encoder_by_position() -> None:
    encoder, decoder, single = FoldPlan(3, (3, 4, 6)), FoldPlan(2, (2, 3, 5)), FoldPlan(4, (4,))
    assert [decoder_depth(encoder, decoder, depth) for depth in encoder.depths] == [2, 3, 5]
    assert [decoder_depth(encoder, single, depth) for depth in (3, 5, 6)] == [4, 4, 4]
    with pytest.raises(KeyError, match=r"depth 5 is not planned; with its decoder this model runs at 3, 4, 6"):
        decoder_depth(encoder, decoder, 5)
    for fits in (decoder, single):
        check_pairs(encoder, fits)
    with pytest.raises(ValueError, match=r"^decoder\.depths: \[2, 4\] must have one depth for each of the encoder's"):
        check_pairs(encoder, FoldPlan(2, (2, 4)))


def test_private_parts_have_one_text_each() -> None:
    assert str(Private()) == "none"
    assert str(Private(norms=True, lora_rank=8, film=True)) == "norms+lora8+film"
    with pytest.raises(ValueError, match="lora_on"):
        Private(lora_on=("q_proj",))


def test_plans_specs_and_rows_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, foldray.folding.plan, foldray.config.spec, foldray.config.recipes, foldray.results.rows\n"
        "import foldray.data.corpora, foldray.data.epoch, foldray.data.manifest, foldray.cli.main\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
