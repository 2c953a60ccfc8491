"""`foldray doctor`: whether the packages, the cluster, each of its nodes and a recipe are ready, and what to mend."""

import contextlib
import importlib.metadata
import os
import platform
import re
import time
import tomllib
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from foldray import storage
from foldray.cli.node_checks import (
    MISSING,
    STORE_SECONDS,
    Check,
    checked,
    environment,
    leave_mark,
    look_from_task,
    said,
    version,
    versions,
)
from foldray.config.corpus import BUILTIN_CORPUS
from foldray.config.section import without_secret
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.runtime.extras import check_extra
from foldray.runtime.ray import start_ray

NODE_SECONDS = 120.0
"""How long a node may take to look at itself; starting a worker process there is most of it."""
RAYS_OWN = re.compile(r"memory|_group_|:")
"""Names of resources that nobody asks for: memory, addresses, and what is set aside for a running job."""


def examine(spec: RunSpec | None, root: str) -> Iterator[Check]:
    """Look at everything that a run needs, one check at a time; a recipe adds what it asks for.

    root: the store, which every node must be able to write and to see alike. Raises UserError where it bears a secret.
    """
    try:
        root = storage.absolute(without_secret(root))
    except ValueError as error:
        raise UserError("--store", str(error)) from None
    mark = storage.join(root, f".foldray-doctor-{uuid.uuid4().hex}")
    with environment(FOLDRAY_STORAGE_RETRY_SECONDS=STORE_SECONDS):
        yield _packages()
        try:
            driver = checked("storage", "", lambda: leave_mark(root, mark), "choose another storage.root")
            yield driver
            yield from _nodes(spec, root, mark if driver.ok else None)
        finally:
            with contextlib.suppress(Exception):  # what could not be written need not go, and that was said
                storage.remove(mark)
        if spec is not None:
            yield from _recipe(spec)


# --- Packages and the cluster ----------------------------------------------------------------------


def _packages() -> Check:
    """The versions that were installed, against those that foldray was written for."""
    there = versions()
    found = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {there[name]}" for name in ("torch", "transformers", "ray")
    )
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(each) for each in _requirements()]
    except ImportError:
        return Check("packages", "", False, found, "pip install packaging")
    wrong = []
    for each in requirements:
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            installed = version(each.name)
            if installed == MISSING or not each.specifier.contains(installed, prereleases=True):
                wrong.append(f"{each.name}{each.specifier} ({installed})")
    if wrong:
        return Check("packages", "", False, found, f"install what foldray needs: {', '.join(wrong)}")
    return Check("packages", "", True, found)


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("foldray") or []
    except importlib.metadata.PackageNotFoundError:  # a job that was given the folder, on packages of the cluster
        file = Path(__file__).parents[2] / "pyproject.toml"
        listed: list[str] = tomllib.loads(file.read_text())["project"]["dependencies"]
        return listed


def _nodes(spec: RunSpec | None, root: str, mark: str | None) -> Iterator[Check]:
    """The cluster as a whole, then each node by itself."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray = start_ray(max(1.0, _workers_need(spec).get("CPU", 0.0)) if spec else 1)
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except UserError as error:
        yield Check("ray", "", False, "refused", str(error))
        return
    except Exception as error:
        mend = "Ray does not start here: see `packages` above, or the newest folder under /tmp/ray for why"
        yield Check("ray", "", False, said(error), mend)
        return
    yield cluster_check(spec, ray.__version__, [node["Resources"] for node in nodes], address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    corpus = spec.corpus.path if spec and spec.corpus.path != BUILTIN_CORPUS else None
    # A process of its own each, since it changes its environment.
    look = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(look_from_task)
    tasks = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            root, mark, node["Resources"].get("GPU", 0), versions(), corpus
        ): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in nodes
    }
    until, waiting = time.monotonic() + NODE_SECONDS, list(tasks)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(until - time.monotonic(), 0.0))
        if not done:
            break
        for task in done:
            try:
                yield from (Check(where=tasks[task], **found) for found in ray.get(task))
            except Exception as error:
                mend = "give this node the same Python and packages as the others, and foldray (`--working-dir .`)"
                yield Check("node", tasks[task], False, said(getattr(error, "cause", None) or error), mend)
    for task in waiting:
        ray.cancel(task, force=True)
        mend = "its raylet starts no worker, or its store hangs: look at its memory and /tmp/ray/session_latest/logs"
        yield Check("node", tasks[task], False, f"no answer in {NODE_SECONDS:g} s", mend)


def _workers_need(spec: RunSpec) -> dict[str, float]:
    """Resources of all of a recipe's workers, the least number of them."""
    return {name: amount * spec.scale.least_workers for name, amount in _worker_needs(spec).items()}


def _worker_needs(spec: RunSpec) -> dict[str, float]:
    default = {"CPU": 1.0, **({"GPU": 1.0} if spec.scale.use_gpu else {})}
    return {**default, **spec.scale.resources_per_worker}


def cluster_check(spec: RunSpec | None, version: str, nodes: list[dict[str, float]], address: str | None) -> Check:
    """Whether all that a recipe asks for is there; what others use of it right now is not counted.

    nodes: the resources of each.
    """
    there: Counter[str] = Counter()
    for node in nodes:
        there.update({name: amount for name, amount in node.items() if not RAYS_OWN.search(name)})
    joined = f"the cluster at {storage.scrubbed(address)}" if address else "this machine alone"
    found = f"Ray {version}, {joined}: {len(nodes)} node{'s' * (len(nodes) != 1)}, {_amounts(there)}"
    if spec is None:
        return Check("ray", "", True, found)
    needed = Counter(_workers_need(spec))
    needed.update(spec.scale.validation_resources)
    asked = f"{spec.scale.least_workers} workers and validation take {_amounts(needed)}"
    mend = f"{asked}; add nodes, or change scale.workers, scale.use_gpu or scale.resources_per_worker"
    if any(there[name] < amount for name, amount in needed.items()):
        return Check("ray", "", False, found, mend)
    each = _worker_needs(spec)
    if not any(all(node.get(name, 0) >= amount for name, amount in each.items()) for node in nodes):
        return Check("ray", "", False, found, f"no single node has what one worker takes, {_amounts(each)}; {mend}")
    return Check("ray", "", True, f"{found}; {asked}")


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"


# --- A recipe --------------------------------------------------------------------------------------


def _recipe(spec: RunSpec) -> Iterator[Check]:
    """Whether a recipe's model, corpus and trackers are there, by what `plan` and training ask before they begin."""

    def model() -> str:
        from foldray.models.costs import plan_costs
        from foldray.models.stock_config import check_model

        check_model(spec.found_model(), spec.fold.plan())
        plan_costs(spec.found_model(), spec.fold.plan(), 32)  # runs it, on shapes alone
        return f"{spec.model.family} {spec.model.checkpoint or 'from scratch'}"

    def corpus() -> str:
        from foldray.data.augment import Noises
        from foldray.data.corpora import find_corpus

        if spec.augment.noise_path:
            Noises(spec.augment.noise_path)
        if spec.corpus.path == BUILTIN_CORPUS:  # found would be made, which takes a minute
            check_extra("demo", "espeakng_loader", where="corpus.path", what="the built-in corpus")
            return "the built-in voices (eSpeak NG)"
        found = find_corpus(spec.corpus, spec.storage.root)
        return f"{len(found.utterances)} utterances in {found.folder}, read as {found.layout}"

    def trackers() -> str:
        from foldray.training.trackers import check_trackers

        check_trackers(spec)
        return ", ".join(spec.tracking) or "none"

    yield checked("model", "", model, "`foldray plan` with the same arguments says more")
    yield checked("corpus", "", corpus, "`foldray prepare` with the same arguments says more")
    yield checked("tracking", "", trackers, "drop it from `tracking`")
