"""Shared fixtures: a small spoken corpus, and its prepared form made without Ray."""

import os

# One thread a process: tiny models lose more to threads than they gain, and two cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foldray.config.corpus import CorpusSpec
from foldray.data.builtin import write_builtin_corpus
from foldray.data.manifest import Manifest
from tests.support.corpora import prepare_serially

LONGEST_FIRST = ("pipeline", "jobs", "chaos", "hosts", "corpus_kills", "tune", "server", "ingress")
"""Files of tests with Ray, each in one process; in this order two processes end at about the same time."""


def _with_ray(nodeid: str) -> str | None:
    """The name of a test's file if its tests start Ray."""
    name = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
    return name if name in LONGEST_FIRST else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first; the order within a file stays."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(_with_ray(item.nodeid) or "", len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests one by one, but a file with Ray as a whole.

    Not `--dist loadgroup`: xdist 3.8 ignores its marks under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class RayByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _with_ray(nodeid) or nodeid

    return RayByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of stores and buckets stay out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL corpus of about a hundred seconds of training speech and twenty of test speech."""
    folder = tmp_path_factory.mktemp("spoken") / "voices"
    write_builtin_corpus(folder, train_minutes=1.6, test_minutes=0.3)
    return folder


@pytest.fixture(scope="session")
def prepared(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    """The spoken corpus in shards; row groups of ten seconds, so that there are several."""
    spec = CorpusSpec(path=str(spoken), row_group_seconds=10, shard_minutes=0.5, valid_fraction=0.1)
    return prepare_serially(spec, tmp_path_factory.mktemp("store"))


@pytest.fixture
def without_ray() -> None:
    """Shut down the Ray of an earlier test in this process."""
    import ray

    ray.shutdown()


@pytest.fixture
def own_corpus(spoken: Path, tmp_path: Path) -> Path:
    """A copy of the spoken corpus that a test may damage."""
    return Path(shutil.copytree(spoken, tmp_path / "voices"))
