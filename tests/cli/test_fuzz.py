"""Half a minute of the fuzzer: damaged input ends in a result, an error of one line or a reason."""

import random
import subprocess
import sys

import pytest

from tests.support.fuzz import draw_kind
from tests.support.fuzz_kinds import KINDS
from tests.support.mutate import damage_bytes
from tests.support.paths import PROJECT


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_refused_or_read(kind: str) -> None:
    command = [sys.executable, "-m", "tests.support.fuzz", "--minutes", "0.1", "--seed", "1", "--kind", kind]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert int(ended.stdout.split(" cases in ")[0].splitlines()[-1]) > 0


def test_a_case_is_a_function_of_its_number_and_the_seed() -> None:
    data = bytes(range(256))
    assert damage_bytes(data, random.Random("0:audio:7")) == damage_bytes(data, random.Random("0:audio:7")) != data
    kinds = [draw_kind(number, 0, tuple(KINDS)) for number in range(400)]
    assert kinds == [draw_kind(number, 0, tuple(KINDS)) for number in range(400)]
    assert set(kinds) == set(KINDS)
