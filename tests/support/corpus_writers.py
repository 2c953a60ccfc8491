"""One small corpus, written in every layout and in every audio format the layout allows."""

import csv
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "sph": ("NIST", "PCM_16"),
}
"""libsndfile's format and subtype of each file ending."""

RATES = {"wav": 44_100, "flac": 16_000, "ogg": 22_050, "opus": 48_000, "mp3": 32_000, "sph": 8_000}
WORDS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN"]


class Item(NamedTuple):
    """One utterance: samples (T,) or (T, C) in [-1, 1]; ending: the format it has where a layout leaves it open."""

    id: str
    split: str
    speaker: str
    text: str
    samples: npt.NDArray[np.float32]
    rate: int
    ending: str


def some_corpus(speakers: int = 6, each: int = 3, seconds: float = 0.6) -> list[Item]:
    """Items of several rates, channel counts and formats; speakers by turns in train (twice), valid and test."""
    items = []
    for number in range(speakers):
        speaker, split = str(1001 + number), ("train", "valid", "test", "train")[number % 4]
        for part in range(each):
            ending = list(FORMATS)[len(items) % len(FORMATS)]
            samples = _tone(len(items), RATES[ending], seconds, 1 + (len(items) // 2) % 2)
            text = f"{WORDS[number % 10]} AND {WORDS[part % 10]}"
            items.append(Item(f"{speaker}-1-{part:04d}", split, speaker, text, samples, RATES[ending], ending))
    return items


def _tone(number: int, rate: int, seconds: float, channels: int) -> npt.NDArray[np.float32]:
    time = np.arange(round(seconds * rate)) / rate
    waves = [0.3 * np.sin(2 * np.pi * (200 + 15 * number + 100 * channel) * time) for channel in range(channels)]
    return np.stack(waves, axis=1).astype(np.float32)


def encode(item: Item, ending: str | None = None) -> bytes:
    """The item as an audio file."""
    kind, subtype = FORMATS[ending or item.ending]
    target = io.BytesIO()
    soundfile.write(target, item.samples, item.rate, format=kind, subtype=subtype)
    return target.getvalue()


def _write(file: Path, data: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def _seconds(item: Item) -> float:
    return len(item.samples) / item.rate


def by_split(items: list[Item]) -> dict[str, list[Item]]:
    """Items of each split, in their order."""
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[item.split].append(item)
    return found


def write_jsonl(folder: Path, items: list[Item]) -> None:
    """`<split>.jsonl` and audio/."""
    for split, members in by_split(items).items():
        rows = []
        for item in members:
            audio = f"audio/{item.id}.{item.ending}"
            _write(folder / audio, encode(item))
            rows.append({"id": item.id, "audio": audio, "text": item.text, "speaker": item.speaker})
            rows[-1]["duration"] = _seconds(item)
        _write(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write_nemo(folder: Path, items: list[Item]) -> None:
    """`<split>_manifest.json` with NeMo's names; the ids are the paths, so audio lies beside it."""
    for split, members in by_split(items).items():
        rows = []
        for item in members:
            _write(folder / f"{item.id}.{item.ending}", encode(item))
            row = {"audio_filepath": f"{item.id}.{item.ending}", "duration": _seconds(item), "text": item.text}
            rows.append({**row, "speaker": item.speaker})
        _write(folder / f"{split}_manifest.json", "".join(json.dumps(row) + "\n" for row in rows))


def write_kaldi(folder: Path, items: list[Item]) -> None:
    """`<split>/wav.scp`, text, utt2spk, utt2lang and utt2dur; the audio beside the splits."""
    for split, members in by_split(items).items():
        for item in members:
            _write(folder / "audio" / f"{item.id}.{item.ending}", encode(item))
        _write_tables(folder / split, members, {i.id: f"../audio/{i.id}.{i.ending}" for i in members})
        _write(folder / split / "utt2dur", "".join(f"{i.id} {_seconds(i):.3f}\n" for i in members))


def _write_tables(folder: Path, members: list[Item], wavs: dict[str, str]) -> None:
    _write(folder / "wav.scp", "".join(f"{key} {path}\n" for key, path in sorted(wavs.items())))
    _write(folder / "text", "".join(f"{i.id} {i.text}\n" for i in members))
    _write(folder / "utt2spk", "".join(f"{i.id} {i.speaker}\n" for i in members))
    _write(folder / "utt2lang", "".join(f"{i.id} en\n" for i in members))


def write_kaldi_segments(folder: Path, items: list[Item]) -> None:
    """The same utterances as segments: one long recording for all of a split, rate and channel count."""
    for split, members in by_split(items).items():
        long: dict[str, list[Item]] = defaultdict(list)
        for item in members:
            long[f"{split}-{item.rate}-{item.samples.shape[1]}"].append(item)
        lines = []
        for name, parts in long.items():
            start = 0.0
            for item in parts:
                lines.append(f"{item.id} {name} {start:.4f} {start + _seconds(item):.4f}\n")
                start += _seconds(item)
            whole = parts[0]._replace(samples=np.concatenate([part.samples for part in parts]))
            _write(folder / split / f"{name}.flac", encode(whole, "flac"))
        _write_tables(folder / split, members, {name: f"{name}.flac" for name in long})
        _write(folder / split / "segments", "".join(lines))


def write_librispeech(folder: Path, items: list[Item]) -> None:
    """`train-clean-100/SPEAKER/CHAPTER/` with .flac and transcripts, and so on."""
    names = {"train": "train-clean-100", "valid": "dev-clean", "test": "test-clean"}
    chapters: dict[Path, list[Item]] = defaultdict(list)
    for item in items:
        speaker, chapter, _ = item.id.split("-")
        chapters[folder / names[item.split] / speaker / chapter].append(item)
    for place, members in chapters.items():
        for item in members:
            _write(place / f"{item.id}.flac", encode(item, "flac"))
        transcripts = "".join(f"{item.id} {item.text}\n" for item in members)
        _write(place / f"{place.parent.name}-{place.name}.trans.txt", transcripts)


def write_commonvoice(folder: Path, items: list[Item]) -> None:
    """`train.tsv`, `dev.tsv`, `test.tsv`, clips/ and clip_durations.tsv."""
    for split, members in by_split(items).items():
        rows = [("client_id", "path", "sentence", "up_votes", "locale")]
        for item in members:
            _write(folder / "clips" / f"{item.id}.{item.ending}", encode(item))
            rows.append((item.speaker, f"{item.id}.{item.ending}", item.text, "2", "en"))
        name = {"valid": "dev"}.get(split, split)
        _write(folder / f"{name}.tsv", "".join("\t".join(row) + "\n" for row in rows))
    with (folder / "clip_durations.tsv").open("w", newline="") as file:
        durations = [(f"{item.id}.{item.ending}", round(1000 * _seconds(item))) for item in items]
        csv.writer(file, delimiter="\t").writerows([("clip", "duration[ms]"), *durations])


def write_folder(folder: Path, items: list[Item]) -> None:
    """`<split>/SPEAKER/` with a .txt or .lab beside each audio file; ids get the speaker's folder before them."""
    for number, item in enumerate(items):
        place = folder / item.split / item.speaker
        _write(place / f"{item.id}.{item.ending}", encode(item))
        _write(place / f"{item.id}.{('txt', 'lab')[number % 2]}", item.text + "\n")


def write_webdataset(folder: Path, items: list[Item], per_shard: int = 2) -> None:
    """`<split>-000000.tar` …: audio and .txt or .json by turns; the speaker is only in the .json."""
    for split, members in by_split(items).items():
        for shard in range(0, len(members), per_shard):
            target = io.BytesIO()
            with tarfile.open(fileobj=target, mode="w") as tar:
                for item in members[shard : shard + per_shard]:
                    said = {"text": item.text, "speaker": item.speaker, "lang": "en", "duration": _seconds(item)}
                    add_member(tar, f"{item.id}.{item.ending}", encode(item))
                    add_member(tar, f"{item.id}.json", json.dumps(said).encode())
                    if len(item.text) % 2:
                        add_member(tar, f"{item.id}.txt", item.text.encode())
            _write(folder / f"{split}-{shard // per_shard:06d}.tar", target.getvalue())


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file in a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_parquet(folder: Path, items: list[Item]) -> None:
    """`data/<split>-00000-of-00002.parquet` … with row groups of two, as `datasets` writes them."""
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = [("audio", audio), ("sentence", pa.string()), ("speaker_id", pa.int64()), ("lang", pa.string())]
    for split, members in by_split(items).items():
        halves = [members[: len(members) // 2], members[len(members) // 2 :]]
        for number, half in enumerate(halves):
            rows = [
                {
                    "audio": {"bytes": encode(item), "path": f"{item.id}.{item.ending}"},
                    "sentence": item.text,
                    "speaker_id": int(item.speaker),
                    "lang": "en",
                }
                for item in half
            ]
            file = folder / "data" / f"{split}-{number:05d}-of-00002.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), file, row_group_size=2)


def write_lhotse(folder: Path, items: list[Item]) -> None:
    """`cuts_<split>.jsonl.gz` of relative recordings, written by lhotse; of each two cuts one is a segment."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    for split, members in by_split(items).items():
        cuts = []
        for number, item in enumerate(members):
            _write(folder / "audio" / f"{item.id}.{item.ending}", encode(item))
            channels = list(range(item.samples.shape[1]))
            source = AudioSource("file", channels, f"audio/{item.id}.{item.ending}")
            count, seconds = len(item.samples), _seconds(item)
            recording = Recording(f"r-{item.id}", [source], item.rate, count, seconds, channel_ids=channels)
            start, length = (0.1, seconds - 0.1) if number % 2 else (0.0, seconds)
            words, half = item.text.split(), length / 2
            said = [  # the later part first: time orders them
                SupervisionSegment(
                    f"{item.id}-b", f"r-{item.id}", half, half, 0, " ".join(words[1:]), "en", item.speaker
                ),
                SupervisionSegment(f"{item.id}-a", f"r-{item.id}", 0, half, 0, words[0], "en", item.speaker),
            ]
            cuts.append(MonoCut(item.id, start, length, channels[-1], supervisions=said, recording=recording))
        folder.mkdir(parents=True, exist_ok=True)
        CutSet.from_cuts(cuts).to_file(folder / f"cuts_{split}.jsonl.gz")


WRITERS: dict[str, Callable[[Path, list[Item]], None]] = {
    "jsonl": write_jsonl,
    "nemo": write_nemo,
    "kaldi": write_kaldi,
    "kaldi_segments": write_kaldi_segments,
    "librispeech": write_librispeech,
    "commonvoice": write_commonvoice,
    "folder": write_folder,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "lhotse": write_lhotse,
}
"""What writes the corpus into a local folder, by layout."""

LAYOUT_OF = {name: {"nemo": "jsonl", "kaldi_segments": "kaldi"}.get(name, name) for name in WRITERS}
"""The layout each writer writes."""
