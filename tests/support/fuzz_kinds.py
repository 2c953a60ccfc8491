"""What each kind of fuzz case damages, and the function of foldray that then reads it."""

import functools
import io
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from foldray.config.corpus import CorpusSpec
from foldray.config.recipes import load_recipe, recipe_names
from foldray.data.audio import decode
from foldray.data.recording import decode_recording
from foldray.errors import UserError
from tests.support.corpora import prepare_serially
from tests.support.corpus_writers import WRITERS, some_corpus
from tests.support.mutate import HUGE, damage_bytes, damage_value
from tests.support.ngrams import fuzz_ngram

SECONDS = 0.8
FORMATS = {
    "wav": ("WAV", "PCM_16"), "wav24": ("WAV", "PCM_24"), "wavf": ("WAV", "FLOAT"), "ulaw": ("WAV", "ULAW"),
    "adpcm": ("WAV", "IMA_ADPCM"), "wavex": ("WAVEX", "PCM_16"), "rf64": ("RF64", "PCM_16"), "w64": ("W64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"), "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"), "sph": ("NIST", "PCM_16"),
}  # fmt: skip
MAX_SECONDS = 300
TOLERANCE = 0.06
"""Seconds by which the ends of lossy formats differ."""


class LostAudioError(Exception):
    """A file that was cut off gives less audio than it had, without a reason."""


class Surroundings:
    """A process's folder, with the valid inputs that are written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Any] = {}
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def once(self, name: str, make: Callable[[Path], Any]) -> Any:
        """What `make` returned for the folder of this name."""
        if name not in self.known:
            self.known[name] = make(self.folder / name)
        return self.known[name]

    def copied(self, source: Path) -> Path:
        """A copy of a folder that the next case replaces."""
        target = self.folder / "case"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target


@functools.cache
def _audio(name: str) -> bytes:
    kind, subtype = FORMATS[name]
    target = io.BytesIO()
    rate = 48_000 if name == "opus" else 16_000
    noise_T = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * rate))
    soundfile.write(target, noise_T, rate, format=kind, subtype=subtype)
    return target.getvalue()


def fuzz_audio(rng: random.Random, _around: Surroundings) -> None:
    """Decode damaged audio, as prepare and transcribe do."""
    name = rng.choice(list(FORMATS))
    whole = _audio(name)
    if rng.random() < 0.4:
        decode(damage_bytes(whole, rng), max_seconds=MAX_SECONDS)  # 1 Hz would become six hours
        return
    if rng.random() < 0.6:
        pieces = itertools.islice(decode_recording(damage_bytes(whole, rng)), 10)
        assert all(len(piece) <= 31 * 16_000 for piece in pieces)
        return
    cut = whole[: rng.randrange(len(whole))]
    seconds = len(decode(cut)) / 16_000
    if seconds < SECONDS - TOLERANCE:
        raise LostAudioError(f"{name}: {seconds:.2f} s of {SECONDS} s from {len(cut)} of {len(whole)} bytes")


def fuzz_manifest(rng: random.Random, around: Surroundings) -> None:
    """Prepare a small corpus of some layout, one of whose files is damaged."""
    layout = rng.choice(list(WRITERS))

    def write(folder: Path) -> Path:
        WRITERS[layout](folder, some_corpus(speakers=6, each=1, seconds=0.4))
        return folder

    corpus = around.copied(around.once(f"corpus-{layout}", write))
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix not in (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph")]
    file = rng.choice(texts or files)
    file.write_bytes(
        _damage_lines(file.read_bytes(), rng) if rng.random() < 0.5 else damage_bytes(file.read_bytes(), rng)
    )
    spec = CorpusSpec(
        path=str(corpus), max_quarantine=1, min_seconds=0.1, frame_seconds=0.001, valid_fraction=0.3,
    )  # fmt: skip
    store = around.folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    _, manifest = prepare_serially(spec, store)
    if manifest.utterances_in != manifest.utterances_out + manifest.quarantined:
        raise LostAudioError(
            f"{manifest.utterances_in} in, {manifest.utterances_out} out, {manifest.quarantined} aside"
        )


def _damage_lines(data: bytes, rng: random.Random) -> bytes:
    """Damage a field of one line: a JSON value, or a column between blanks or tabs."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = json.dumps(damage_value(json.loads(lines[at]), rng)).encode()
    except (ValueError, RecursionError):
        parts = lines[at].replace(b"\t", b" ").split(b" ")
        parts[rng.randrange(len(parts))] = str(rng.choice(HUGE)).encode("utf-8", "surrogatepass")[:200]
        lines[at] = rng.choice((b" ", b"\t")).join(parts)
    return b"\n".join(lines)


def fuzz_spec(rng: random.Random, around: Surroundings) -> None:
    """Load a damaged recipe file, or damaged overrides."""
    if rng.random() < 0.4:
        field = rng.choice(_fields())
        load_recipe("an4", [f"{field}={_as_yaml(rng.choice(HUGE))}"])
        return
    values = _recipe(rng.choice(recipe_names()))
    file = around.folder / "recipe.json"
    if rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 3))):
            values = damage_value(values, rng)
        try:
            file.write_text(json.dumps(values), encoding="utf-8")
        except RecursionError:
            raise UserError("the fuzzer", "nests deeper than it can write") from None
    else:
        file.write_bytes(damage_bytes(json.dumps(values).encode(), rng))
    load_recipe(str(file))


@functools.cache
def _recipe(name: str) -> dict[str, Any]:
    values: dict[str, Any] = load_recipe(name).model_dump(mode="json")
    return values


@functools.cache
def _fields() -> list[str]:
    return [f"{name}.{each}" for name, inner in _recipe("an4").items() if isinstance(inner, dict) for each in inner]


def _as_yaml(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).split("\n...")[0].strip()


def fuzz_results(rng: random.Random, around: Surroundings) -> None:
    """List, compare and report a store, one of whose files is damaged."""
    from foldray.results.comparison import compare_runs
    from foldray.results.query import list_rows, run_sql
    from foldray.results.report import write_report

    store = around.copied(around.once("results", _write_store))
    file = rng.choice(sorted(path for path in store.rglob("*") if path.is_file()))
    data = file.read_bytes()
    file.write_bytes(
        _damage_lines(data, rng) if file.suffix != ".parquet" and rng.random() < 0.6 else damage_bytes(data, rng)
    )
    rng.choice((
        lambda: list_rows(str(store)),
        lambda: run_sql(str(store), "SELECT * FROM runs, results, hypotheses"),
        lambda: compare_runs(str(store), "fold-a1", "fold-b2"),
        lambda: write_report(str(store)),
    ))()  # fmt: skip


def _write_store(store: Path) -> Path:
    from foldray.results.metrics import write_metrics
    from foldray.results.rows import write_rows
    from tests.support.rows import evaluation

    spec = load_recipe("an4")
    for run in ("fold-a1", "fold-b2"):
        made = [evaluation(run, ["one two three", "yes no"] * 3, 0.3, depth=depth, step=4) for depth in (3, 6)]
        write_rows(str(store), [each[0] for each in made], [each for one in made for each in one[1]])
        folder = store / "runs" / run
        record = {"ctc": {"3": 1.0, "6": 0.9}, "kl": {"3": 0.1}, "audio_seconds": 9.0, "padding": 0.1, "seconds": 0.1}
        write_metrics(str(folder), "0001-0001", [{"step": step, **record} for step in range(1, 5)])
        (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        facts = {"corpus": "c", "corpus_id": "c", "spec_hash": "0", "created": "", "versions": {}, "git_commit": ""}
        (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return store


def _damage_value_of(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(damage_value(json.loads(data), rng)).encode()
    except RecursionError:
        return b"[" * 100_000


def fuzz_model(rng: random.Random, around: Surroundings) -> None:
    """Transcribe with a model folder, one of whose files is damaged."""
    from foldray.stages.transcribe import transcribe_stage

    model = around.copied(around.once("model", _write_model))
    file = rng.choice(sorted(path for path in model.rglob("*") if path.is_file() and path.name != "a.wav"))
    data = file.read_bytes()
    file.write_bytes(
        _damage_value_of(data, rng) if file.suffix == ".json" and rng.random() < 0.6 else damage_bytes(data, rng)
    )
    list(transcribe_stage(str(model), str(around.folder / "store"), [str(model / "a.wav")], None)[1])


def _write_model(folder: Path) -> Path:
    from foldray import FoldPlan, fold, save_model
    from tests.support.tiny import TOKENIZER, tiny_model

    model = tiny_model("wav2vec2", 2)
    fold(model, FoldPlan(2, (2, 3)))
    save_model(model, folder, TOKENIZER)
    (folder / "a.wav").write_bytes(_audio("wav"))
    return folder


KINDS: dict[str, Callable[[random.Random, Surroundings], object]] = {
    "audio": fuzz_audio, "manifest": fuzz_manifest, "spec": fuzz_spec, "model": fuzz_model, "results": fuzz_results,
    "ngram": fuzz_ngram,
}  # fmt: skip
"""Every kind by its name."""
