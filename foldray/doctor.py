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
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.session import start_ray
from foldray.spec import BUILTIN_CORPUS, SAMPLE_RATE, RunSpec

NODE_SECONDS = 120.0
"""How long a node may take to look at itself; starting a worker process there is most of it."""
LEAST_FREE = 2**30
FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3"}


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

    root: the store, which every node must be able to write and to see alike.
    """
    # Somebody waits in front of the screen: a store that does not answer is one to mend.
    os.environ.setdefault("FOLDRAY_STORAGE_RETRY_SECONDS", "5")
    yield _packages()
    root = storage.absolute(root)
    mark = storage.join(root, f".foldray-doctor-{uuid.uuid4().hex}")
    try:
        yield _checked("storage", "", lambda: _storage(root, mark, first=True), "another storage.root, or its rights")
        yield from _nodes(spec, root, mark)
    finally:
        with contextlib.suppress(Exception):  # what could not be written need not go, and that was said
            storage.remove(mark)
    if spec is not None:
        yield from _recipe(spec)


def _checked(name: str, where: str, look: Callable[[], str], mend: str) -> Check:
    """What `look` found; where it raises, what to do: the error's own advice if it is one for users."""
    try:
        return Check(name, where, True, look())
    except UserError as error:
        return Check(name, where, False, "refused", str(error))
    except Exception as error:
        return Check(name, where, False, f"{type(error).__name__}: {one_line(error)}", mend)


# --- Packages and the cluster ----------------------------------------------------------------------


def _packages() -> Check:
    """The versions that were installed, against those that foldray was written for."""
    from packaging.requirements import Requirement

    try:
        requirements = map(Requirement, importlib.metadata.requires("foldray") or ())
    except importlib.metadata.PackageNotFoundError:
        # A job that was given this folder: the cluster's own packages serve it.
        return Check("packages", "", True, f"Python {platform.python_version()}; foldray runs from a folder")
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = []
    for each in needed:
        try:
            there = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            there = ""
        if not each.specifier.contains(there or "0", prereleases=True) or not there:
            wrong.append(f"{each.name}{each.specifier} ({there or 'missing'})")
    main = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "ray"))
    found = f"Python {platform.python_version()}, {main}"
    if wrong:
        return Check("packages", "", False, f"{found}; not as needed: {', '.join(wrong)}", "pip install foldray again")
    return Check("packages", "", True, found)


def _nodes(spec: RunSpec | None, root: str, mark: str) -> Iterator[Check]:
    """The cluster as a whole, then each node by itself."""
    from foldray.training.workers import cpus_needed

    address = os.environ.get("RAY_ADDRESS")
    try:
        _knock(address)
        ray = start_ray(cpus_needed(spec) if spec else 1)
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except Exception as error:
        mend = (
            f"start a cluster at RAY_ADDRESS={address} (`ray start --head`), or unset that to use this machine alone"
            if address
            else "this machine can't start Ray: look at the newest folder under /tmp/ray for why"
        )
        yield Check("ray", "", False, f"{type(error).__name__}: {one_line(error)}", mend)
        return
    yield _cluster(spec, ray, len(nodes), address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A process of its own each, which looks at devices that Ray gave it none of.
    look = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(look_at_node)
    tasks = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            root, mark, node["Resources"].get("GPU", 0)
        ): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in nodes
    }
    waited, waiting = time.monotonic(), list(tasks)
    while waiting:
        left = NODE_SECONDS - (time.monotonic() - waited)
        done, waiting = ray.wait(waiting, timeout=max(left, 0.0))
        if not done:
            break
        for task in done:
            try:
                yield from (Check(where=tasks[task], **found) for found in ray.get(task))
            except Exception as error:
                mend = "give this node the same Python and packages as the others, and foldray (`--working-dir .`)"
                yield Check("node", tasks[task], False, one_line(getattr(error, "cause", None) or error), mend)
    for task in waiting:
        mend = "its raylet starts no worker: look at its memory and /tmp/ray/session_latest/logs"
        yield Check("node", tasks[task], False, f"no answer in {NODE_SECONDS:g} s", mend)


def _knock(address: str | None) -> None:
    """Whether anything listens where the cluster should be; Ray itself would ask for minutes."""
    if address and (place := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)):
        socket.create_connection((place[1], int(place[2])), timeout=5).close()


def _cluster(spec: RunSpec | None, ray: Any, count: int, address: str | None) -> Check:
    """Whether all that a recipe asks for is there at all; what others use of it right now is not counted."""
    there = ray.cluster_resources()
    joined = f"the cluster at {address}" if address else "this machine alone (RAY_ADDRESS names a cluster)"
    found = f"Ray {ray.__version__}, {joined}: {count} node{'s' * (count > 1)}, {_amounts(there)}"
    if spec is None:
        return Check("ray", "", True, found)
    scale = spec.scale
    each = {"CPU": 1.0, **scale.resources_per_worker} | ({"GPU": 1.0} if scale.use_gpu else {})
    needed = {name: amount * scale.least_workers for name, amount in each.items()}
    short = {name: amount for name, amount in needed.items() if there.get(name, 0) < amount}
    if short:
        asked = f"{scale.least_workers} workers ask for {_amounts(needed)}"
        mend = f"{asked}; add nodes, or change scale.workers, scale.use_gpu or scale.resources_per_worker"
        return Check("ray", "", False, found, mend)
    return Check("ray", "", True, f"{found}; {scale.least_workers} workers fit")


def _amounts(resources: dict[str, float]) -> str:
    named = {name: amount for name, amount in sorted(resources.items()) if not RAYS_OWN.search(name)}
    return ", ".join(f"{amount:g} {name}" for name, amount in named.items()) or "nothing"


RAYS_OWN = re.compile(r"memory|bundle_group|_group_|:")
"""Names of resources that nobody asks for by name: memory, addresses, and what is set aside for a running job."""


# --- One node --------------------------------------------------------------------------------------


def look_at_node(root: str, mark: str, gpus: float) -> list[dict[str, Any]]:
    """What a process on a node finds there: devices, bfloat16, the store, audio; `Check`s without `where`."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.setdefault("FOLDRAY_STORAGE_RETRY_SECONDS", "5")
    checks = [
        _checked("devices", "", lambda: _devices(gpus), "a driver and a torch for the same CUDA, or no GPUs for Ray"),
        _checked("storage", "", lambda: _storage(root, mark, first=False), "its network, rights or AWS_… variables"),
        _checked("audio", "", _audio, "pip install soundfile again: its wheel brings libsndfile along"),
    ]
    return [{name: value for name, value in vars(check).items() if name != "where"} for check in checks]


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


def _storage(root: str, mark: str, *, first: bool) -> str:
    """Write, read, list and delete; and see the mark that the first one left: a folder must be shared by all nodes."""
    storage.check_writable(root, "storage.root")
    if first:
        storage.write_bytes(mark, b"foldray doctor")
    elif not storage.exists(mark):
        mend = f"{root} is not the folder that the driver writes to; use s3:// or one that all nodes mount"
        raise UserError("storage.root", mend)
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
    """Whether a recipe's model, corpus and trackers are there; what they say is what training would say."""
    from foldray.configuration import check_model
    from foldray.data.corpora import find_corpus
    from foldray.training.tracking import check_trackers

    def model() -> str:
        check_model(spec.found_model(), spec.fold.plan())
        return f"{spec.model.family} {spec.model.checkpoint or 'from scratch'}"

    def corpus() -> str:
        if spec.corpus.path == BUILTIN_CORPUS:  # found would be made, which takes a minute
            if importlib.util.find_spec("espeakng_loader") is None:
                raise UserError("corpus.path", "the built-in voices need the extra 'demo': pip install 'foldray[demo]'")
            return "the built-in voices (eSpeak NG)"
        found = find_corpus(spec.corpus, spec.storage.root)
        return f"{len(found.utterances)} utterances in {found.folder}, read as {found.layout}"

    def trackers() -> str:
        check_trackers(spec)
        return ", ".join(spec.tracking) or "none"

    yield _checked("model", "", model, "`foldray plan` with the same arguments says more")
    yield _checked("corpus", "", corpus, "`foldray prepare` with the same arguments says more")
    yield _checked("tracking", "", trackers, "drop it from `tracking`")
