"""Starting a Ray of this machine's own."""

from typing import Any

import pytest

from foldray.errors import UserError
from foldray.runtime import ray as session


class Slow:
    """A Ray that starts at the `number`-th try: a real one that is too slow takes half a minute to say so."""

    def __init__(self, number: int) -> None:
        self.tries_left, self.options = number, list[dict[str, Any]]()

    def init(self, **options: Any) -> None:
        self.options.append(options)
        self.tries_left -= 1
        if self.tries_left > 0:
            raise Exception("The current node timed out during startup.")

    def shutdown(self) -> None:
        pass


def test_a_ray_that_is_slow_to_start_is_tried_again() -> None:
    ray = Slow(session.TRIES)
    session._start(ray, {"num_cpus": 2})
    assert ray.options == session.TRIES * [{"address": "local", "num_cpus": 2}]


def test_one_that_never_starts_is_one_line() -> None:
    ray = Slow(session.TRIES + 1)
    with pytest.raises(UserError, match=r"^Ray: does not start here \(The current node timed out during startup\.\); "):
        session._start(ray, {})
    assert len(ray.options) == session.TRIES
