"""Checks of one node: packages, devices, audio decoders, and access to the store and the corpus."""

import contextlib
import importlib.metadata
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError, one_line

STORE_SECONDS = "5"
"""How long to retry an unreachable store: somebody waits for the answer."""
MIN_FREE_BYTES = 2**30
FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3"}
SHARED_PACKAGES = ("torch", "torchaudio", "transformers", "ray", "soundfile", "pyarrow")
"""Packages whose versions every node must share with the driver."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check. where: the node, or "" for the whole cluster; fix: what to do if it failed."""

    name: str
    where: str
    ok: bool
    found: str
    fix: str = ""


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set environment variables of this process temporarily; None removes one."""
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


def run_check(name: str, where: str, probe: Callable[[], str], fix: str) -> Check:
    """Run a probe, which returns what it found. If it raises a UserError, that says how to fix it; else `fix` does."""
    try:
        return Check(name, where, True, storage.scrubbed(probe()))
    except UserError as error:
        return Check(name, where, False, "refused", storage.scrubbed(str(error)))
    except Exception as error:
        return Check(name, where, False, describe_error(error), fix)


def describe_error(error: BaseException) -> str:
    """An exception on one line, without secrets."""
    return storage.scrubbed(f"{type(error).__name__}: {one_line(error)}")


MISSING = "missing"


def version(name: str) -> str:
    """The version of an installed package, or MISSING."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def versions() -> dict[str, str]:
    """Versions of SHARED_PACKAGES."""
    return {name: version(name) for name in SHARED_PACKAGES}


def check_node_in_task(
    root: str, marker: str | None, gpus: float, driver: dict[str, str], corpus: str | None
) -> list[dict[str, object]]:
    """Run `check_node` as a Ray task."""
    # The task requests no GPU, because it would wait for one in use, but checks all of them.
    with environment(CUDA_VISIBLE_DEVICES=None, FOLDRAY_STORAGE_RETRY_SECONDS=STORE_SECONDS):
        return check_node(root, marker, gpus, driver, corpus)


def check_node(
    root: str, marker: str | None, gpus: float, driver: dict[str, str], corpus: str | None
) -> list[dict[str, object]]:
    """Check the node that this process runs on.

    Args:
        marker: a file that the driver wrote to the store.
        gpus: how many GPUs Ray counts on this node.
        driver: the versions of the driver's packages.
        corpus: a folder or prefix that preparation reads from every node.

    Returns:
        `Check`s as dicts, without `where`.
    """
    probes: dict[str, tuple[Callable[[], str], str]] = {
        "packages": (lambda: _same_versions(driver), "give every node the same image or environment"),
        "devices": (
            lambda: _devices(gpus),
            "install a GPU driver and a torch for the same CUDA version, or start Ray with fewer GPUs (--num-gpus)",
        ),
        "storage": (lambda: _storage(root, marker), "check its network, permissions and AWS_… variables"),
        "audio": (_audio, "reinstall soundfile, which includes libsndfile, and torchaudio"),
    }
    if corpus:
        probes["corpus"] = (lambda: _corpus_visible(corpus), "check its network, permissions and AWS_… variables")
    checks = [run_check(name, "", probe, fix) for name, (probe, fix) in probes.items()]
    return [{name: value for name, value in vars(check).items() if name != "where"} for check in checks]


def _same_versions(driver: dict[str, str]) -> str:
    here = versions()
    if others := [
        f"{name} {here[name]} (the driver has {there})" for name, there in driver.items() if here[name] != there
    ]:
        raise RuntimeError(", ".join(others))
    return "same versions as the driver"


def _corpus_visible(corpus: str) -> str:
    if not storage.is_folder(storage.absolute(corpus)):
        raise UserError("corpus.path", f"{corpus} is not on this node; use s3:// or a folder that all nodes mount")
    return f"{corpus} is visible"


def _devices(gpus: float) -> str:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < gpus:
        raise RuntimeError(f"Ray counts {gpus:g} GPUs here, torch {torch.__version__} sees {there}")
    if not there:
        times = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        return (
            f"{os.cpu_count()} cores, no GPU; a bfloat16 matrix product takes {times:.1f} times as long as in float32"
        )
    names = {torch.cuda.get_device_name(i) for i in range(there)}
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(there)) / 2**30
    native = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
    full = []
    for i in range(there):  # a driver too old for this torch fails only when it has to compute
        try:
            torch.ones(8, device=f"cuda:{i}").sum().item()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            full.append(str(i))  # a training run uses all of it, which is no fault
    used = f"; currently out of memory: {', '.join(full)}" * bool(full)
    return f"{there} x {', '.join(sorted(names))}, {memory:.0f} GiB, {native} bfloat16{used}"


def _product_seconds(dtype: Any) -> float:
    """Shortest time of a product of square matrices on this CPU."""
    import torch

    matrix = torch.randn(512, 512).to(dtype)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - began)
    return min(times)


def write_marker(root: str, marker: str) -> str:
    """Check the store, and write a file there for the nodes to find."""
    found = _storage(root, None)
    storage.write_bytes(marker, b"foldray doctor")
    return found


def _storage(root: str, marker: str | None) -> str:
    """Write, read, list and delete a file, and find the driver's marker: all nodes must share the folder."""
    if marker and not storage.exists(marker):
        fix = f"{root} is not the folder that the driver writes to; use s3:// or one that all nodes mount"
        raise UserError("storage.root", fix)
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
        raise RuntimeError(
            f"a file of 1 MiB was read back {'unchanged but missing from the listing' if same else 'changed'}"
        )
    found = f"{root}: 1 MiB written in {written - began:.2f} s, read in {read - written:.2f} s"
    if not storage.is_local(root):
        return found
    free = shutil.disk_usage(storage.filesystem_path(root)).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            "storage.root", f"{root} has {free / 2**20:.0f} MiB left; free some space, or choose another storage.root"
        )
    return f"{found}, {free / 2**30:.0f} GiB free"


def _audio() -> str:
    """Decode one second of a tone in each format, resampled from 44.1 kHz, as every corpus is."""
    import soundfile

    from foldray.data.audio import decode

    tone_T = (0.3 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)).astype(np.float32)
    for name, kind in FORMATS.items():
        file = io.BytesIO()
        soundfile.write(file, tone_T, 44_100, format=kind)
        decoded_T = decode(file.getvalue())
        if abs(len(decoded_T) - SAMPLE_RATE) > SAMPLE_RATE // 10:  # lossy formats pad
            raise RuntimeError(f"a second of {name} became {len(decoded_T)} samples at {SAMPLE_RATE} Hz")
    return f"{', '.join(FORMATS)} decoded by {soundfile.__libsndfile_version__}"
