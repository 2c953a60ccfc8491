"""The built-in corpus: spoken English commands, synthesised offline by eSpeak NG (the extra `demo`).

`write_builtin_corpus(folder)` writes a corpus folder of layout jsonl:

    folder/train.jsonl, folder/test.jsonl           id, audio, text, speaker, duration, lang
    folder/audio/{train,test}/<id>.flac             mono, 16 bit, 22,050 Hz (eSpeak's output rate)

A speaker is an accent with a voice variant ("en-us_f3"). No speaker and no sentence is in both splits.
The same arguments give the same bytes. The module also runs as a script, so it imports nothing of foldray.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

BUILTIN_VERSION = 1
"""Raise it with every change that changes a byte of the corpus."""

SAMPLE_RATE = 22050
MIN_SECONDS, MAX_SECONDS = 1.0, 5.0
TEST_SPEAKER_SHARE, TEST_SENTENCE_SHARE = 7, 6  # every 7th speaker, every 6th sentence

ACCENTS = {
    "en-us": "gmw/en-US",
    "en-nyc": "gmw/en-US-nyc",
    "en-gb": "gmw/en",
    "en-rp": "gmw/en-GB-x-rp",
    "en-midlands": "gmw/en-GB-x-gbcwmd",
    "en-scotland": "gmw/en-GB-scotland",
}
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("Andy", "Annie", "Denis", "Michael", "edward", "linda", "steph"),
)

_SENTENCES = json.loads(Path(__file__).with_name("builtin_sentences.json").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = _SENTENCES["words"]
TEMPLATES: list[str] = _SENTENCES["templates"]
"""Sentences with slots, and the words that fill each slot."""


ManifestRow: TypeAlias = dict[str, str | float]
"""A line of train.jsonl or test.jsonl."""


class SpeechRequest(NamedTuple):
    """One utterance to synthesise: its text, and the voice settings."""

    text: str
    speaker: str
    rate: int  # words a minute
    pitch: int  # 0 to 100; 50 is the default of the voice
    pitch_range: int  # 0 to 100


def write_builtin_corpus(
    folder: Path, *, seed: int = 0, train_minutes: float = 46.0, test_minutes: float = 6.0
) -> None:
    """Write the corpus to `folder`. The two jsonl files come last, so a folder with both is complete.

    Each split has just enough utterances to reach its minutes. The corpus is synthesised in a new process, because
    eSpeak's output depends on what its process has synthesised before.

    Raises:
        ImportError: The extra `demo` is not installed.
    """
    _extra("soundfile"), _extra("espeakng_loader")
    arguments = [str(folder), str(seed), str(float(train_minutes)), str(float(test_minutes))]
    subprocess.run([sys.executable, "-P", __file__, *arguments], check=True)


def _write_corpus(folder: Path, seed: int, train_minutes: float, test_minutes: float) -> None:
    minutes = {"train": train_minutes, "test": test_minutes}
    rows = {split: _write_audio(folder, split, seed, minutes[split] * 60) for split in minutes}
    for split, split_rows in rows.items():
        partial = folder / f"{split}.jsonl.partial"
        partial.write_text("".join(json.dumps(row) + "\n" for row in split_rows), encoding="utf-8")
    for split in rows:
        (folder / f"{split}.jsonl.partial").replace(folder / f"{split}.jsonl")


def builtin_corpus_id(seed: int = 0, train_minutes: float = 46.0, test_minutes: float = 6.0) -> str:
    """Twelve hex digits that identify the corpus of these arguments."""
    key = json.dumps([BUILTIN_VERSION, seed, float(train_minutes), float(test_minutes)])
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def vocabulary() -> frozenset[str]:
    """All words that sentences can contain."""
    fixed = " ".join(TEMPLATES).replace("{", " {").split()
    return frozenset(word for word in fixed if "{" not in word).union(*WORDS.values())


def speakers(split: str) -> tuple[str, ...]:
    """The speakers of "train" or "test". Every accent is in both splits, no pair of accent and variant is."""
    pairs = [(a, v) for a in range(len(ACCENTS)) for v in range(len(VARIANTS))]
    names = list(ACCENTS)
    held_out = split == "test"
    return tuple(f"{names[a]}_{VARIANTS[v]}" for a, v in pairs if ((a + v) % TEST_SPEAKER_SHARE == 0) == held_out)


def _write_audio(folder: Path, split: str, seed: int, seconds: float) -> list[ManifestRow]:
    """Write `seconds` of a split's audio; return its manifest rows in order of id."""
    soundfile = _extra("soundfile")
    (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
    rows: list[ManifestRow] = []
    written = 0.0
    for request, samples_T in _synthesised(split, seed):
        if written >= seconds:
            break
        name = f"{split}-{len(rows):05d}"
        path = f"audio/{split}/{name}.flac"
        soundfile.write(folder / path, samples_T, SAMPLE_RATE, subtype="PCM_16")
        rows.append(_row(name, path, request, len(samples_T)))
        written += len(samples_T) / SAMPLE_RATE
    return rows


def _row(name: str, path: str, request: SpeechRequest, num_samples: int) -> ManifestRow:
    duration = round(num_samples / SAMPLE_RATE, 4)
    text, speaker = request.text, request.speaker
    return {"id": name, "audio": path, "text": text, "speaker": speaker, "duration": duration, "lang": "en"}


def _synthesised(split: str, seed: int) -> Iterator[tuple[SpeechRequest, npt.NDArray[np.int16]]]:
    """Endless requests of a split with their audio, of 1 to 5 seconds each."""
    synthesise = _synthesiser()
    for request in speech_requests(split, seed):
        samples_T = synthesise(request)
        if MIN_SECONDS <= len(samples_T) / SAMPLE_RATE <= MAX_SECONDS:
            yield request, samples_T


def speech_requests(split: str, seed: int) -> Iterator[SpeechRequest]:
    """Endless requests of a split: speakers alternate in shuffled order, each with its own rate and pitch."""
    rng = random.Random(f"{BUILTIN_VERSION} {seed} {split}")
    used: set[str] = set()
    names = rng.sample(speakers(split), len(speakers(split)))
    habits = {name: (rng.randint(125, 170), rng.randint(40, 60)) for name in names}
    while True:
        for name in names:
            rate, pitch = habits[name]
            jitter = rng.randint(-10, 10), rng.randint(-6, 6)
            text = _sentence(rng, split, used)
            yield SpeechRequest(text, name, rate + jitter[0], pitch + jitter[1], rng.randint(35, 65))


def _sentence(rng: random.Random, split: str, used: set[str]) -> str:
    """A random sentence of the split (its checksum decides which), a new one if 100 draws find one."""
    for _ in range(100):
        text = _split_sentence(rng, split)
        if text not in used:
            break
    used.add(text)
    return text


def _split_sentence(rng: random.Random, split: str) -> str:
    while True:
        text = " ".join(_word(rng, word) for word in rng.choice(TEMPLATES).split())
        if (zlib.crc32(text.encode()) % TEST_SENTENCE_SHARE == 0) == (split == "test"):
            return text


def _word(rng: random.Random, word: str) -> str:
    return rng.choice(WORDS[word.strip("{}")]) if word.startswith("{") else word


def _extra(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = "the built-in corpus needs the extra 'demo': pip install 'foldray[demo]'"
        raise ImportError(f"{message} ({error})") from error


_AUDIO_SYNCHRONOUS, _CHARS_UTF8, _POS_CHARACTER = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _synthesiser() -> Callable[[SpeechRequest], npt.NDArray[np.int16]]:
    """Start eSpeak (once per process); return a function from a request to 16-bit samples (T,)."""
    loader = _extra("espeakng_loader")
    library = ctypes.CDLL(loader.get_library_path())
    rate = library.espeak_Initialize(_AUDIO_SYNCHRONOUS, 0, loader.get_data_path().encode(), 0)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"eSpeak NG did not start, or has another sample rate: {rate}")
    chunks: list[bytes] = []

    def receive(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)

    def synthesise(request: SpeechRequest, _keep_alive: object = callback) -> npt.NDArray[np.int16]:
        chunks.clear()
        _set_voice(library, request)
        library.espeak_ng_SetRandSeed(ctypes.c_long(_noise_seed(request)))
        text = request.text.capitalize().encode()
        _check(library.espeak_Synth(text, len(text) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None), request)
        return np.frombuffer(b"".join(chunks), dtype="<i2")

    return synthesise


def _set_voice(library: ctypes.CDLL, request: SpeechRequest) -> None:
    accent, variant = request.speaker.split("_")
    _check(library.espeak_SetVoiceByName(f"{ACCENTS[accent]}+{variant}".encode()), request)
    for parameter, value in ((_RATE, request.rate), (_PITCH, request.pitch), (_RANGE, request.pitch_range)):
        _check(library.espeak_SetParameter(parameter, value, 0), request)


def _noise_seed(request: SpeechRequest) -> int:
    """A positive random seed for the breath noise of some voices, which eSpeak otherwise seeds with the clock."""
    # The corpus's bytes depend on this exact text: the name in it must not follow the name of the class.
    settings = ", ".join(f"{name}={value!r}" for name, value in request._asdict().items())
    return 1 + zlib.crc32(f"Utterance({settings})".encode()) % (2**31 - 2)


def _check(status: int, request: SpeechRequest) -> None:
    if status != 0:
        raise RuntimeError(f"eSpeak NG failed with status {status} at {request}")


if __name__ == "__main__":
    _write_corpus(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
