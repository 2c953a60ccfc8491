"""What one node says of itself: its packages, devices, audio decoders, and what it sees of the store and the corpus."""

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
"""Somebody waits in front of the screen: a store that does not answer for so long is one to mend."""
LEAST_FREE = 2**30
FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3"}
ALIKE = ("torch", "torchaudio", "transformers", "ray", "soundfile", "pyarrow")
"""Packages whose versions every node must share with the driver."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. where: the node, or "" for all of it; mend: what to do, where it is not ok."""

    name: str
    where: str
    ok: bool
    found: str
    mend: str = ""


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
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


def checked(name: str, where: str, look: Callable[[], str], mend: str) -> Check:
    """What `look` found; where it raises, what to do: the error's own advice if it is one for users."""
    try:
        return Check(name, where, True, storage.scrubbed(look()))
    except UserError as error:
        return Check(name, where, False, "refused", storage.scrubbed(str(error)))
    except Exception as error:
        return Check(name, where, False, said(error), mend)


def said(error: BaseException) -> str:
    """An exception on one line, without secrets."""
    return storage.scrubbed(f"{type(error).__name__}: {one_line(error)}")


MISSING = "missing"


def version(name: str) -> str:
    """Of an installed package, or MISSING."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def versions() -> dict[str, str]:
    """Those of the packages that must be alike everywhere."""
    return {name: version(name) for name in ALIKE}


def look_from_task(
    root: str, mark: str | None, gpus: float, driver: dict[str, str], corpus: str | None
) -> list[dict[str, Any]]:
    """`look_at_node` as a task of Ray."""
    # It was given no GPU, since one in use would keep it waiting; it looks at them all the same.
    with environment(CUDA_VISIBLE_DEVICES=None, FOLDRAY_STORAGE_RETRY_SECONDS=STORE_SECONDS):
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
    checks = [checked(name, "", look, mend) for name, (look, mend) in looks.items()]
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
    full = []
    for i in range(there):  # a driver too old for this torch says so only when asked to work
        try:
            torch.ones(8, device=f"cuda:{i}").sum().item()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            full.append(str(i))  # somebody's training has all of it, which is what it is there for
    used = f"; just now without free memory: {', '.join(full)}" * bool(full)
    return f"{there} x {', '.join(sorted(names))}, {memory:.0f} GiB, {native} bfloat16{used}"


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


def leave_mark(root: str, mark: str) -> str:
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
