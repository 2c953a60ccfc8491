"""`foldray doctor`: whether the packages, the cluster, each of its nodes and a recipe are ready, and what to mend."""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import socket
import time
import tomllib
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.session import start_ray
from foldray.spec import BUILTIN_CORPUS, SAMPLE_RATE, RunSpec
from foldray.spec.section import without_secret

NODE_SECONDS = 120.0
"""How long a node may take to look at itself; starting a worker process there is most of it."""
STORE_SECONDS = "5"
"""Somebody waits in front of the screen: a store that does not answer for so long is one to mend."""
LEAST_FREE = 2**30
FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3"}
ALIKE = ("torch", "torchaudio", "transformers", "ray", "soundfile", "pyarrow")
"""Packages whose versions every node must share with the driver."""
RAYS_OWN = re.compile(r"memory|_group_|:")
"""Names of resources that nobody asks for: memory, addresses, and what is set aside for a running job."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. where: the node, or "" for all of it; mend: what to do, where it is not ok."""

    name: str
    where: str
    ok: bool
    found: str
    mend: str = ""


def examine(spec: RunSpec | None, root: str) -> Iterator[Check]:
    """Look at everything that a run needs, one check at a time; a recipe adds what it asks for.

    root: the store, which every node must be able to write and to see alike. Raises UserError where it bears a secret.
    """
    try:
        root = storage.absolute(without_secret(root))
    except ValueError as error:
        raise UserError("--store", str(error)) from None
    mark = storage.join(root, f".foldray-doctor-{uuid.uuid4().hex}")
    with _environment(FOLDRAY_STORAGE_RETRY_SECONDS=STORE_SECONDS):
        yield _packages()
        try:
            driver = _checked("storage", "", lambda: _leave_mark(root, mark), "choose another storage.root")
            yield driver
            yield from _nodes(spec, root, mark if driver.ok else None)
        finally:
            with contextlib.suppress(Exception):  # what could not be written need not go, and that was said
                storage.remove(mark)
        if spec is not None:
            yield from _recipe(spec)


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Variables of this process for a while; None: without."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _checked(name: str, where: str, look: Callable[[], str], mend: str) -> Check:
    """What `look` found; where it raises, what to do: the error's own advice if it is one for users."""
    try:
        return Check(name, where, True, storage.scrubbed(look()))
    except UserError as error:
        return Check(name, where, False, "refused", storage.scrubbed(str(error)))
    except Exception as error:
        return Check(name, where, False, _said(error), mend)


def _said(error: BaseException) -> str:
    return storage.scrubbed(f"{type(error).__name__}: {one_line(error)}")


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
            version = _version(each.name)
            if version == MISSING or not each.specifier.contains(version, prereleases=True):
                wrong.append(f"{each.name}{each.specifier} ({version})")
    if wrong:
        return Check("packages", "", False, found, f"install what foldray needs: {', '.join(wrong)}")
    return Check("packages", "", True, found)


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("foldray") or []
    except importlib.metadata.PackageNotFoundError:  # a job that was given the folder, on packages of the cluster
        file = Path(__file__).parents[1] / "pyproject.toml"
        listed: list[str] = tomllib.loads(file.read_text())["project"]["dependencies"]
        return listed


MISSING = "missing"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def versions() -> dict[str, str]:
    """Those of the packages that must be alike everywhere."""
    return {name: _version(name) for name in ALIKE}


def _nodes(spec: RunSpec | None, root: str, mark: str | None) -> Iterator[Check]:
    """The cluster as a whole, then each node by itself."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        _knock(address)
        ray = start_ray(max(1.0, _workers_need(spec).get("CPU", 0.0)) if spec else 1)
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except Exception as error:
        mend = "Ray does not start here: see `packages` above, or the newest folder under /tmp/ray for why"
        if address:
            mend = (
                f"start a cluster (`ray start --head`) at RAY_ADDRESS={storage.scrubbed(address)}, or unset that to "
                "use this machine alone"
            )
        yield Check("ray", "", False, _said(error), mend)
        return
    yield cluster_check(spec, ray.__version__, [node["Resources"] for node in nodes], address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    corpus = spec.corpus.path if spec and spec.corpus.path != BUILTIN_CORPUS else None
    # A process of its own each, since it changes its environment.
    look = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_look_from_task)
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
                yield Check("node", tasks[task], False, _said(getattr(error, "cause", None) or error), mend)
    for task in waiting:
        ray.cancel(task, force=True)
        mend = "its raylet starts no worker, or its store hangs: look at its memory and /tmp/ray/session_latest/logs"
        yield Check("node", tasks[task], False, f"no answer in {NODE_SECONDS:g} s", mend)


def _knock(address: str | None) -> None:
    """Whether anything listens where the cluster should be; Ray itself would ask for minutes."""
    if address and (place := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)):
        socket.create_connection((place[1], int(place[2])), timeout=5).close()


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


# --- One node --------------------------------------------------------------------------------------


def _look_from_task(
    root: str, mark: str | None, gpus: float, driver: dict[str, str], corpus: str | None
) -> list[dict[str, Any]]:
    # It was given no GPU, since one in use would keep it waiting; it looks at them all the same.
    with _environment(CUDA_VISIBLE_DEVICES=None, FOLDRAY_STORAGE_RETRY_SECONDS=STORE_SECONDS):
        return look_at_node(root, mark, gpus, driver, corpus)


def look_at_node(
    root: str, mark: str | None, gpus: float, driver: dict[str, str], corpus: str | None
) -> list[dict[str, Any]]:
    """What a process on a node finds there; `Check`s without `where`.

    mark: a file that the driver left in the store; gpus: how many Ray counts here; driver: the versions of its
    packages; corpus: a folder or prefix that preparation reads, from every node.
    """
    looks: dict[str, tuple[Callable[[], str], str]] = {
        "packages": (lambda: _alike(driver), "give every node the same image or environment"),
        "devices": (
            lambda: _devices(gpus),
            "a driver and a torch for the same CUDA, or fewer GPUs for Ray (--num-gpus)",
        ),
        "storage": (lambda: _storage(root, mark), "its network, rights or AWS_… variables"),
        "audio": (_audio, "pip install soundfile and torchaudio again; the former brings libsndfile along"),
    }
    if corpus:
        looks["corpus"] = (lambda: _see_corpus(corpus), "its network, rights or AWS_… variables")
    checks = [_checked(name, "", look, mend) for name, (look, mend) in looks.items()]
    return [{name: value for name, value in vars(check).items() if name != "where"} for check in checks]


def _alike(driver: dict[str, str]) -> str:
    here = versions()
    if others := [
        f"{name} {here[name]} (the driver has {there})" for name, there in driver.items() if here[name] != there
    ]:
        raise RuntimeError(", ".join(others))
    return "as the driver's"


def _see_corpus(corpus: str) -> str:
    if not storage.is_folder(storage.absolute(corpus)):
        raise UserError("corpus.path", f"{corpus} is not on this node; use s3:// or a folder that all nodes mount")
    return f"{corpus} is there"


def _devices(gpus: float) -> str:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < gpus:
        raise RuntimeError(f"Ray counts {gpus:g} GPUs here, torch {torch.__version__} sees {there}")
    if not there:
        times = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        return f"{os.cpu_count()} cores, no GPU; a bfloat16 product takes {times:.1f} times as long as a float32 one"
    names = {torch.cuda.get_device_name(i) for i in range(there)}
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(there)) / 2**30
    native = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
    torch.ones(8, device="cuda").sum().item()  # a driver too old for this torch says so only when asked to work
    return f"{there} x {', '.join(sorted(names))}, {memory:.0f} GiB, {native} bfloat16"


def _product_seconds(dtype: Any) -> float:
    """Least time of a product of square matrices on this CPU."""
    import torch

    matrix = torch.randn(512, 512).to(dtype)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - began)
    return min(times)


def _leave_mark(root: str, mark: str) -> str:
    """What `_storage` finds, and a file for the nodes to see."""
    found = _storage(root, None)
    storage.write_bytes(mark, b"foldray doctor")
    return found


def _storage(root: str, mark: str | None) -> str:
    """Write, read, list and delete; and see the driver's mark, if there is one: all nodes must share a folder."""
    if mark and not storage.exists(mark):
        mend = f"{root} is not the folder that the driver writes to; use s3:// or one that all nodes mount"
        raise UserError("storage.root", mend)
    storage.check_writable(root, "storage.root")
    data = np.random.default_rng().bytes(2**20)
    probe = storage.join(root, f"foldray-doctor-{uuid.uuid4().hex}")
    began = time.perf_counter()
    storage.write_bytes(probe, data)
    written = time.perf_counter()
    try:
        same = storage.read_bytes(probe) == data
        read = time.perf_counter()
        listed = storage.split(probe)[1] in storage.list_files(root)
    finally:
        storage.remove(probe)
    if not same or not listed:
        raise RuntimeError(f"a file of 1 MiB came back {'the same but in no listing' if same else 'changed'}")
    found = f"{root}: 1 MiB written in {written - began:.2f} s, read in {read - written:.2f} s"
    if not storage.is_local(root):
        return found
    free = shutil.disk_usage(storage.filesystem_path(root)).free
    if free < LEAST_FREE:
        raise UserError("storage.root", f"{root} has {free / 2**20:.0f} MiB left; free some, or choose another place")
    return f"{found}, {free / 2**30:.0f} GiB free"


def _audio() -> str:
    """A second of a tone in each format, and at another rate, through the decoder of every corpus."""
    import soundfile

    from foldray.data.audio import decode

    tone_T = (0.3 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)).astype(np.float32)
    for name, kind in FORMATS.items():
        file = io.BytesIO()
        soundfile.write(file, tone_T, 44_100, format=kind)
        heard_T = decode(file.getvalue())
        if abs(len(heard_T) - SAMPLE_RATE) > SAMPLE_RATE // 10:  # lossy formats pad
            raise RuntimeError(f"a second of {name} became {len(heard_T)} samples at {SAMPLE_RATE} Hz")
    return f"{', '.join(FORMATS)} decoded by {soundfile.__libsndfile_version__}"


# --- A recipe --------------------------------------------------------------------------------------


def _recipe(spec: RunSpec) -> Iterator[Check]:
    """Whether a recipe's model, corpus and trackers are there, by what `plan` and training ask before they begin."""

    def model() -> str:
        from foldray.configuration import check_model
        from foldray.costs import plan_costs

        check_model(spec.found_model(), spec.fold.plan())
        plan_costs(spec.found_model(), spec.fold.plan(), 32)  # runs it, on shapes alone
        return f"{spec.model.family} {spec.model.checkpoint or 'from scratch'}"

    def corpus() -> str:
        from foldray.data.augment import Noises
        from foldray.data.corpora import find_corpus

        if spec.augment.noise_path:
            Noises(spec.augment.noise_path)
        if spec.corpus.path == BUILTIN_CORPUS:  # found would be made, which takes a minute
            if importlib.util.find_spec("espeakng_loader") is None:
                raise UserError("corpus.path", "the built-in voices need the extra 'demo': pip install 'foldray[demo]'")
            return "the built-in voices (eSpeak NG)"
        found = find_corpus(spec.corpus, spec.storage.root)
        return f"{len(found.utterances)} utterances in {found.folder}, read as {found.layout}"

    def trackers() -> str:
        from foldray.training.tracking import check_trackers

        check_trackers(spec)
        return ", ".join(spec.tracking) or "none"

    yield _checked("model", "", model, "`foldray plan` with the same arguments says more")
    yield _checked("corpus", "", corpus, "`foldray prepare` with the same arguments says more")
    yield _checked("tracking", "", trackers, "drop it from `tracking`")
