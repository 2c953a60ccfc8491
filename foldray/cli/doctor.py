"""Checks of `foldray doctor`: packages, store, cluster, each of its nodes, and a recipe."""

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
    check_node_in_task,
    describe_error,
    environment,
    run_check,
    version,
    versions,
    write_marker,
)
from foldray.config.corpus import BUILTIN_CORPUS
from foldray.config.section import without_secret
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.runtime.extras import check_extra
from foldray.runtime.ray import start_ray

NODE_SECONDS = 120.0
"""Timeout for the checks of a node; starting a worker process there takes most of it."""
RAY_INTERNAL = re.compile(r"memory|_group_|:")
"""Resources that no recipe requests: memory, addresses, and placement groups of running jobs."""


def run_checks(spec: RunSpec | None, root: str) -> Iterator[Check]:
    """Check everything that a run needs, one check at a time; a recipe adds its own.

    root: the store, which every node must share and be able to write. Raises UserError if it contains a secret.
    """
    try:
        root = storage.absolute(without_secret(root))
    except ValueError as error:
        raise UserError("--store", str(error)) from None
    marker = storage.join(root, f".foldray-doctor-{uuid.uuid4().hex}")
    with environment(FOLDRAY_STORAGE_RETRY_SECONDS=STORE_SECONDS):
        yield _check_packages()
        try:
            driver = run_check("storage", "", lambda: write_marker(root, marker), "choose another storage.root")
            yield driver
            yield from _check_nodes(spec, root, marker if driver.ok else None)
        finally:
            with contextlib.suppress(Exception):  # if it was never written, a check has reported that
                storage.remove(marker)
        if spec is not None:
            yield from _check_recipe(spec)


# --- Packages and the cluster ----------------------------------------------------------------------


def _check_packages() -> Check:
    """Compare the installed versions with those that foldray requires."""
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
        return Check("packages", "", False, found, f"install what foldray requires: {', '.join(wrong)}")
    return Check("packages", "", True, found)


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("foldray") or []
    except (
        importlib.metadata.PackageNotFoundError
    ):  # a job with foldray as its working directory, on packages of the cluster
        file = Path(__file__).parents[2] / "pyproject.toml"
        listed: list[str] = tomllib.loads(file.read_text())["project"]["dependencies"]
        return listed


def _check_nodes(spec: RunSpec | None, root: str, marker: str | None) -> Iterator[Check]:
    """Check the cluster as a whole, then each node."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray = start_ray(max(1.0, _all_workers_need(spec).get("CPU", 0.0)) if spec else 1)
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except UserError as error:
        yield Check("ray", "", False, "refused", str(error))
        return
    except Exception as error:
        fix = "Ray does not start here: see `packages` above, or the newest folder under /tmp/ray for why"
        yield Check("ray", "", False, describe_error(error), fix)
        return
    yield cluster_check(spec, ray.__version__, [node["Resources"] for node in nodes], address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    corpus = spec.corpus.path if spec and spec.corpus.path != BUILTIN_CORPUS else None
    # Each in a new process, because it changes its environment.
    check = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(check_node_in_task)
    tasks = {
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            root, marker, node["Resources"].get("GPU", 0), versions(), corpus
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
                fix = "give this node the same Python and packages as the others, and foldray (`--working-dir .`)"
                yield Check("node", tasks[task], False, describe_error(getattr(error, "cause", None) or error), fix)
    for task in waiting:
        ray.cancel(task, force=True)
        fix = "its raylet starts no worker, or its store hangs: look at its memory and /tmp/ray/session_latest/logs"
        yield Check("node", tasks[task], False, f"no answer in {NODE_SECONDS:g} s", fix)


def _all_workers_need(spec: RunSpec) -> dict[str, float]:
    """Resources of the smallest number of workers that a recipe allows."""
    return {name: amount * spec.scale.least_workers for name, amount in _each_worker_needs(spec).items()}


def _each_worker_needs(spec: RunSpec) -> dict[str, float]:
    default = {"CPU": 1.0, **({"GPU": 1.0} if spec.scale.use_gpu else {})}
    return {**default, **spec.scale.resources_per_worker}


def cluster_check(spec: RunSpec | None, version: str, nodes: list[dict[str, float]], address: str | None) -> Check:
    """Check that the cluster has the resources that a recipe requests, used by others or not.

    nodes: the resources of each.
    """
    there: Counter[str] = Counter()
    for node in nodes:
        there.update({name: amount for name, amount in node.items() if not RAY_INTERNAL.search(name)})
    joined = f"the cluster at {storage.scrubbed(address)}" if address else "this machine alone"
    found = f"Ray {version}, {joined}: {len(nodes)} node{'s' * (len(nodes) != 1)}, {_amounts(there)}"
    if spec is None:
        return Check("ray", "", True, found)
    needed = Counter(_all_workers_need(spec))
    needed.update(spec.scale.validation_resources)
    requested = f"{spec.scale.least_workers} workers and validation need {_amounts(needed)}"
    fix = f"{requested}; add nodes, or change scale.workers, scale.use_gpu or scale.resources_per_worker"
    if any(there[name] < amount for name, amount in needed.items()):
        return Check("ray", "", False, found, fix)
    each = _each_worker_needs(spec)
    if not any(all(node.get(name, 0) >= amount for name, amount in each.items()) for node in nodes):
        return Check("ray", "", False, found, f"no single node has what one worker needs, {_amounts(each)}; {fix}")
    return Check("ray", "", True, f"{found}; {requested}")


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"


# --- A recipe --------------------------------------------------------------------------------------


def _check_recipe(spec: RunSpec) -> Iterator[Check]:
    """Check a recipe's model, corpus and trackers as `plan` and training do before they start."""

    def model() -> str:
        from foldray.models.costs import PLAN_VOCAB_SIZE, plan_costs
        from foldray.models.stock_config import check_model

        check_model(spec.planned_model())
        plan_costs(spec.planned_model(), PLAN_VOCAB_SIZE)  # runs the model on the meta device
        return f"{spec.model.family} {spec.model.checkpoint or 'from scratch'}"

    def corpus() -> str:
        from foldray.data.augment import Noises
        from foldray.data.corpora import find_corpus

        if spec.augment.noise_path:
            Noises(spec.augment.noise_path)
        if spec.corpus.path == BUILTIN_CORPUS:  # it would be created, which takes a minute
            check_extra("demo", "espeakng_loader", where="corpus.path", what="the built-in corpus")
            return "the built-in voices (eSpeak NG)"
        found = find_corpus(spec.corpus, spec.storage.root)
        return f"{len(found.utterances)} utterances in {found.folder}, read as {found.layout}"

    def trackers() -> str:
        from foldray.training.trackers import check_trackers

        check_trackers(spec)
        return ", ".join(spec.tracking) or "none"

    yield run_check("model", "", model, "`foldray plan` with the same arguments shows details")
    yield run_check("corpus", "", corpus, "`foldray prepare` with the same arguments shows details")
    yield run_check("tracking", "", trackers, "remove it from `tracking`")
