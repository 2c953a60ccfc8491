"""The built-in corpus: spoken English commands, synthesised offline by eSpeak NG (the extra `demo`).

`write_builtin_corpus(folder)` leaves what the loader of any corpus folder expects:

    folder/train.jsonl, folder/test.jsonl           id, audio, text, speaker, duration, lang
    folder/audio/{train,test}/<id>.flac             mono, 16 bit, 22,050 Hz (eSpeak's own rate)

A speaker is an accent with a voice variant ("en-us_f3"). No speaker and no sentence is in both splits.
The same arguments give the same bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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

WORDS: dict[str, tuple[str, ...]] = {
    "number": (
        *("TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN"),
        *("ELEVEN", "TWELVE", "FIFTEEN", "TWENTY"),
    ),
    "room": ("KITCHEN", "BEDROOM", "GARDEN", "OFFICE"),
    "device": ("LIGHT", "HEATER", "RADIO", "FAN"),
    "switch": ("ON", "OFF"),
    "opening": ("DOOR", "WINDOW", "GATE"),
    "city": ("LONDON", "PARIS", "BOSTON", "DUBLIN", "MADRID", "CAIRO"),
    "ride": ("TRAIN", "BUS", "FLIGHT", "TAXI"),
    "day": ("MONDAY", "TUESDAY", "FRIDAY", "SUNDAY", "TODAY", "TOMORROW"),
    "part": ("MORNING", "EVENING"),
    "food": ("RICE", "SOUP", "BREAD", "FISH", "PASTA", "EGGS"),
    "goods": ("APPLES", "LEMONS", "CUPS", "BOTTLES", "TICKETS"),
    "person": ("ANNA", "PETER", "MARIA", "DAVID", "MOTHER", "DOCTOR"),
    "music": ("JAZZ", "MUSIC", "NEWS"),
}
TEMPLATES = (
    "PLEASE TURN {switch} THE {room} {device}",
    "TURN THE {device} IN THE {room} {switch}",
    "OPEN THE {room} {opening} AT {number}",
    "CLOSE THE {opening} AND TURN {switch} THE {device}",
    "BOOK A {ride} TO {city} ON {day}",
    "FIND THE NEXT {ride} FROM {city} TO {city}",
    "THE {ride} TO {city} LEAVES AT {number}",
    "CALL {person} {day} AT {number}",
    "TELL {person} TO BUY {number} {goods} AND SOME {food}",
    "CALL {person} AND ASK FOR A {ride} TO {city} ON {day} {part}",
    "WAKE ME {day} {part} AT {number}",
    "COOK THE {food} FOR {number} MINUTES",
    "ADD {food} AND {number} {goods} TO THE LIST",
    "PLAY {music} IN THE {room}",
    "WHAT IS THE WEATHER IN {city} {day} {part}",
    "SET THE {device} TO {number}",
    "{number} {goods} AND {number} {goods}",
)


class Utterance(NamedTuple):
    """What eSpeak is to say, and how."""

    text: str
    speaker: str
    rate: int  # words a minute
    pitch: int  # 0 to 100, 50 is the voice's own
    pitch_range: int  # 0 to 100


def write_builtin_corpus(
    folder: Path, *, seed: int = 0, train_minutes: float = 46.0, test_minutes: float = 6.0
) -> None:
    """Write the corpus to `folder`; the two jsonl files come last, so a folder that has both is whole.

    Each split gets just enough utterances to reach its minutes. A process of its own does it, because what
    eSpeak says depends on what its process said before. Raises ImportError without the extra `demo`.
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
    """Twelve hex digits that name the corpus these arguments give."""
    key = json.dumps([BUILTIN_VERSION, seed, float(train_minutes), float(test_minutes)])
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def vocabulary() -> frozenset[str]:
    """All words that a sentence can have."""
    fixed = " ".join(TEMPLATES).replace("{", " {").split()
    return frozenset(word for word in fixed if "{" not in word).union(*WORDS.values())


def speakers(split: str) -> tuple[str, ...]:
    """The speakers of "train" or "test"; every accent is in both, no pair of accent and variant is."""
    pairs = [(a, v) for a in range(len(ACCENTS)) for v in range(len(VARIANTS))]
    names = list(ACCENTS)
    held_out = split == "test"
    return tuple(f"{names[a]}_{VARIANTS[v]}" for a, v in pairs if ((a + v) % TEST_SPEAKER_SHARE == 0) == held_out)


def _write_audio(folder: Path, split: str, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Write one split's audio until it holds `seconds`; return its manifest rows in order of id."""
    soundfile = _extra("soundfile")
    (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    written = 0.0
    for utterance, samples_T in _spoken(split, seed):
        if written >= seconds:
            break
        name = f"{split}-{len(rows):05d}"
        path = f"audio/{split}/{name}.flac"
        soundfile.write(folder / path, samples_T, SAMPLE_RATE, subtype="PCM_16")
        rows.append(_row(name, path, utterance, len(samples_T)))
        written += len(samples_T) / SAMPLE_RATE
    return rows


def _row(name: str, path: str, utterance: Utterance, num_samples: int) -> dict[str, Any]:
    duration = round(num_samples / SAMPLE_RATE, 4)
    text, speaker = utterance.text, utterance.speaker
    return {"id": name, "audio": path, "text": text, "speaker": speaker, "duration": duration, "lang": "en"}


def _spoken(split: str, seed: int) -> Iterator[tuple[Utterance, npt.NDArray[np.int16]]]:
    """Endless utterances of a split with their audio, of 1 to 5 seconds each."""
    synthesise = _synthesiser()
    for utterance in _utterances(split, seed):
        samples_T = synthesise(utterance)
        if MIN_SECONDS <= len(samples_T) / SAMPLE_RATE <= MAX_SECONDS:
            yield utterance, samples_T


def _utterances(split: str, seed: int) -> Iterator[Utterance]:
    """Endless utterances; speakers take turns in shuffled order, each with a pace and pitch of its own."""
    rng = random.Random(f"{BUILTIN_VERSION} {seed} {split}")
    said: set[str] = set()
    names = rng.sample(speakers(split), len(speakers(split)))
    habits = {name: (rng.randint(125, 170), rng.randint(40, 60)) for name in names}
    while True:
        for name in names:
            rate, pitch = habits[name]
            jitter = rng.randint(-10, 10), rng.randint(-6, 6)
            text = _sentence(rng, split, said)
            yield Utterance(text, name, rate + jitter[0], pitch + jitter[1], rng.randint(35, 65))


def _sentence(rng: random.Random, split: str, said: set[str]) -> str:
    """A random sentence of the split (its checksum decides which), new while new ones are easily found."""
    for _ in range(100):
        text = _split_sentence(rng, split)
        if text not in said:
            break
    said.add(text)
    return text


def _split_sentence(rng: random.Random, split: str) -> str:
    while True:
        text = " ".join(_word(rng, word) for word in rng.choice(TEMPLATES).split())
        if (zlib.crc32(text.encode()) % TEST_SENTENCE_SHARE == 0) == (split == "test"):
            return text


def _word(rng: random.Random, word: str) -> str:
    return rng.choice(WORDS[word.strip("{}")]) if word.startswith("{") else word


def _extra(module: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        message = "the built-in corpus needs the extra 'demo': pip install 'foldray[demo]'"
        raise ImportError(f"{message} ({error})") from error


_AUDIO_SYNCHRONOUS, _CHARS_UTF8, _POS_CHARACTER = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _synthesiser() -> Callable[[Utterance], npt.NDArray[np.int16]]:
    """Start eSpeak (once a process); return what turns an utterance into 16-bit samples (T,)."""
    loader = _extra("espeakng_loader")
    library = ctypes.CDLL(loader.get_library_path())
    rate = library.espeak_Initialize(_AUDIO_SYNCHRONOUS, 0, loader.get_data_path().encode(), 0)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"eSpeak NG did not start, or has another sample rate: {rate}")
    chunks: list[bytes] = []

    def receive(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)

    def synthesise(utterance: Utterance, _keep_alive: Any = callback) -> npt.NDArray[np.int16]:
        chunks.clear()
        _set_voice(library, utterance)
        library.espeak_ng_SetRandSeed(ctypes.c_long(_noise_seed(utterance)))
        text = utterance.text.capitalize().encode()
        _check(
            library.espeak_Synth(text, len(text) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None),
            utterance,
        )
        return np.frombuffer(b"".join(chunks), dtype="<i2")

    return synthesise


def _set_voice(library: ctypes.CDLL, utterance: Utterance) -> None:
    accent, variant = utterance.speaker.split("_")
    _check(library.espeak_SetVoiceByName(f"{ACCENTS[accent]}+{variant}".encode()), utterance)
    for parameter, value in (
        (_RATE, utterance.rate),
        (_PITCH, utterance.pitch),
        (_RANGE, utterance.pitch_range),
    ):
        _check(library.espeak_SetParameter(parameter, value, 0), utterance)


def _noise_seed(utterance: Utterance) -> int:
    """A positive seed for the breath noise of some voices, which eSpeak otherwise seeds with the clock."""
    return 1 + zlib.crc32(f"{utterance}".encode()) % (2**31 - 2)


def _check(status: int, utterance: Utterance) -> None:
    if status != 0:
        raise RuntimeError(f"eSpeak NG failed with status {status} at {utterance}")


if __name__ == "__main__":
    _write_corpus(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
