"""Preparation loses nothing: in == out + quarantined, killed and resumed == uninterrupted."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from foldray.config.corpus import CorpusSpec
from foldray.data import prepare as preparation
from foldray.data.audio import decode, decode_flac, encode_flac, near_rate
from foldray.data.manifest import Manifest, read_index
from foldray.data.reader import RowReader
from foldray.data.samples import BadAudioError
from foldray.errors import UserError
from tests.support.corpora import damage, encode_wav, ids_in, ids_out, prepare_serially


def test_in_equals_out_plus_quarantined(own_corpus: Path, tmp_path: Path) -> None:
    reasons = damage(own_corpus)
    spec = CorpusSpec(path=str(own_corpus), max_seconds=20, max_quarantine=0.5, valid_fraction=0.1)
    folder, manifest = prepare_serially(spec, tmp_path / "store")
    quarantine = pq.read_table(f"{folder}/quarantine.parquet").to_pylist()
    assert {entry["id"]: entry["reason"] for entry in quarantine} == reasons
    assert sorted(ids_in(own_corpus)) == sorted(ids_out(folder, manifest) + [entry["id"] for entry in quarantine])
    assert (manifest.utterances_in, manifest.quarantined) == (len(ids_in(own_corpus)), len(reasons))
    assert manifest.utterances_out == manifest.utterances_in - manifest.quarantined
    assert sum(manifest.reasons.values()) == manifest.quarantined
    assert all(entry["source"].startswith("train.jsonl:") and entry["detail"] for entry in quarantine)


def test_stereo_44_khz_becomes_mono_16_khz() -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    mono = decode(encode_wav(np.stack([tone, 0 * tone], 1), 44_100))
    expected = 0.15 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert mono.shape == (16_000,)
    assert np.abs(mono - expected)[500:-500].max() < 2e-3


def test_a_wav_shorter_than_declared_is_truncated() -> None:
    with pytest.raises(BadAudioError) as caught:
        decode(encode_wav(0.1 * np.ones(16_000)), declared_seconds=2.0)
    assert caught.value.reason == "truncated"


def test_shards_hold_what_the_corpus_said(own_corpus: Path, prepared: tuple[str, Manifest]) -> None:
    folder, manifest = prepared
    said = {row["id"]: row for row in map(json.loads, (own_corpus / "test.jsonl").read_text().splitlines())}
    index = read_index(folder, manifest, "test")
    read = RowReader(index)
    for position, utterance in enumerate(index.ids.to_pylist()):
        row = read(position)
        assert (row["id"], row["text"]) == (utterance, said[utterance]["text"])
        assert len(decode_flac(row["audio"])) == index.num_samples[position]
        assert index.num_samples[position] / 16_000 == pytest.approx(said[utterance]["duration"], abs=0.001)
        assert index.num_labels[position] == len(row["text"])


def test_row_groups_lie_where_the_index_says(prepared: tuple[str, Manifest]) -> None:
    folder, manifest = prepared
    index = pq.read_table(f"{folder}/index.parquet").to_pylist()
    assert len({(entry["shard"], entry["row_group"]) for entry in index}) > len(manifest.shards)
    for entry in index:
        file = Path(folder, manifest.shards[entry["shard"]].file)
        assert 0 < entry["offset"] < entry["offset"] + entry["bytes"] <= file.stat().st_size


def test_no_speaker_is_in_train_and_valid(own_corpus: Path, prepared: tuple[str, Manifest]) -> None:
    folder, manifest = prepared
    speaker = {
        row["id"]: row["speaker"] for row in map(json.loads, (own_corpus / "train.jsonl").read_text().splitlines())
    }
    train, valid = (
        {speaker[i] for i in read_index(folder, manifest, split).ids.to_pylist()} for split in ("train", "valid")
    )
    assert train
    assert valid
    assert not train & valid


def test_parts_of_a_cross_validation_hold_everything_once(own_corpus: Path, tmp_path: Path) -> None:
    """Whatever `splits` names beside train and test is one corpus with them; a row that can't be read stops nothing."""
    (own_corpus / "test.jsonl").rename(own_corpus / "other.jsonl")
    with (own_corpus / "train.jsonl").open("a") as rows:
        rows.write("no row\n")
    tested: list[str] = []
    for part in ("1/2", "2/2"):
        spec = CorpusSpec(path=str(own_corpus), splits=("train", "valid", "other"), cross_validate=part)
        folder, manifest = prepare_serially(spec, tmp_path)
        assert {shard.split for shard in manifest.shards} <= {"train", "valid", "test"}
        assert manifest.quarantined == 1
        tested += read_index(folder, manifest, "test").ids.to_pylist()
        assert len(ids_out(folder, manifest)) == manifest.utterances_in - 1
    assert sorted(tested) == sorted(ids_out(folder, manifest))


def test_killed_and_resumed_gives_the_same_files(
    own_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CorpusSpec(path=str(own_corpus), shard_minutes=0.2)
    whole, manifest = prepare_serially(spec, tmp_path / "whole")
    assert len(manifest.shards) > 3
    real, written = preparation.write_shard, []

    def dies_at_the_third(task: preparation.ShardTask, folder: str) -> dict:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.file)
        return real(task, folder)

    monkeypatch.setattr(preparation, "write_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare_serially(spec, tmp_path / "cut")
    cut = Path(str(whole).replace(f"{tmp_path}/whole", f"{tmp_path}/cut"))
    times = {name: (cut / name).stat().st_mtime_ns for name in written}
    assert not (cut / "manifest.json").exists()
    monkeypatch.undo()
    resumed, again = prepare_serially(spec, tmp_path / "cut")
    assert again == manifest
    assert {name: (cut / name).stat().st_mtime_ns for name in written} == times
    for file in Path(whole).rglob("*.parquet"):
        assert file.read_bytes() == Path(resumed, file.relative_to(whole)).read_bytes()


def test_an_unchanged_corpus_is_left_alone_and_a_mended_one_is_not(own_corpus: Path, tmp_path: Path) -> None:
    spec = CorpusSpec(path=str(own_corpus))
    first, _ = prepare_serially(spec, tmp_path)
    stamp = Path(first, "manifest.json").stat().st_mtime_ns
    assert prepare_serially(spec, tmp_path)[0] == first
    assert Path(first, "manifest.json").stat().st_mtime_ns == stamp
    moved = own_corpus.rename(own_corpus.parent / "moved")
    other, _ = prepare_serially(CorpusSpec(path=str(moved)), tmp_path)
    assert other.rsplit("-", 1)[1] == first.rsplit("-", 1)[1], "the same files elsewhere are the same corpus"
    next(moved.glob("audio/train/*.flac")).write_bytes(b"")
    assert prepare_serially(CorpusSpec(path=str(moved)), tmp_path)[0] != other


def test_too_much_quarantine_stops_and_keeps_the_shards(own_corpus: Path, tmp_path: Path) -> None:
    damage(own_corpus)
    with pytest.raises(
        UserError, match=r"corpus.max_quarantine: 1\d of \d+ utterances are unusable .*quarantine.parquet"
    ):
        prepare_serially(CorpusSpec(path=str(own_corpus), max_seconds=20), tmp_path)
    assert list(tmp_path.rglob("quarantine.parquet"))
    assert list(tmp_path.rglob("shards/*.parquet"))
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"audio": "a.wav", "text": "A", "duration": NaN}', "duration nan is not a valid number of seconds"),
        ('{"audio": "a.wav", "text": "A", "offset": 1}', "has an offset but no duration"),
        ('{"audio": ', "is not JSON"),
        ("[1]", "is not an object"),
        ('{"text": "HELLO"}', "has no audio file"),
        ('{"audio": "a.wav"} {"audio": "b.wav"}', "has a second object at column 20; write one object a line"),
        ('{"audio": "a.wav", "text": "A", "duration": "long"}', "duration 'long' is not a valid number"),
    ],
)
def test_a_bad_row_is_set_aside_and_named(own_corpus: Path, tmp_path: Path, line: str, detail: str) -> None:
    rows = len((own_corpus / "train.jsonl").read_text().splitlines())
    with (own_corpus / "train.jsonl").open("a") as manifest:
        manifest.write(line + "\n")
    folder, prepared = prepare_serially(CorpusSpec(path=str(own_corpus)), tmp_path)
    assert prepared.reasons == {"bad_metadata": 1}
    entry = pq.read_table(f"{folder}/quarantine.parquet").to_pylist()[0]
    assert (entry["id"], entry["source"]) == (f"train.jsonl:{rows + 1}", f"train.jsonl:{rows + 1}")
    assert entry["detail"].startswith(detail)


def test_a_folder_without_manifests_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"corpus.path: .* has none of the known layouts \(jsonl, .*\); write train.jsonl and test.jsonl",
    ):
        prepare_serially(CorpusSpec(path=str(tmp_path)), tmp_path / "store")


def test_rows_without_ids_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    """File names repeat from folder to folder; the line separator U+2028 in a text is no end of a line."""
    corpus = tmp_path / "numbered"
    tone = 0.3 * np.sin(np.arange(16_000) * 0.05)
    for split, speakers in (("train", 4), ("test", 2)):
        rows = []
        for speaker in range(speakers):
            for number in range(3):
                audio = f"{split}/s{speaker}/{number:03d}.wav"
                (corpus / audio).parent.mkdir(parents=True, exist_ok=True)
                (corpus / audio).write_bytes(encode_wav(tone))
                rows.append({"audio": audio, "text": "one\u2028two", "speaker": f"{split}{speaker}"})
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (corpus / f"{split}.jsonl").write_text(text, encoding="utf-8-sig")
    folder, manifest = prepare_serially(CorpusSpec(path=str(corpus), valid_fraction=0.25), tmp_path / "store")
    assert (manifest.utterances_out, manifest.quarantined) == (18, 0)
    assert len(read_index(folder, manifest, "valid")) == 3
    assert read_index(folder, manifest, "test").ids[0].as_py().startswith("test/s")


def test_segments_of_a_longer_file(tmp_path: Path) -> None:
    corpus = tmp_path / "long"
    corpus.mkdir()
    ramp = np.linspace(0.1, 0.9, 160_000)
    (corpus / "long.wav").write_bytes(encode_wav(ramp))
    rows = [{"audio_filepath": "long.wav", "offset": start, "duration": 2.0, "text": "part"} for start in (0, 3, 9)]
    for split in ("train", "test"):
        (corpus / f"{split}.jsonl").write_text(
            "".join(json.dumps({**r, "id": f"{split}{i}"}) + "\n" for i, r in enumerate(rows))
        )
    spec = CorpusSpec(path=str(corpus), valid_fraction=0, max_quarantine=0.5)
    folder, manifest = prepare_serially(spec, tmp_path / "store")
    assert manifest.reasons == {"truncated": 2}, "ten seconds hold no two from the ninth"
    index = read_index(folder, manifest, "test")
    read = RowReader(index)
    heard = {row["id"]: decode_flac(row["audio"]) for row in map(read, range(len(index)))}
    assert np.abs(heard["test0"] - ramp[:32_000]).max() < 1e-3
    assert np.abs(heard["test1"] - ramp[48_000:80_000]).max() < 1e-3


def test_a_split_without_a_usable_utterance_stops_before_training(own_corpus: Path, tmp_path: Path) -> None:
    for file in (own_corpus / "audio" / "test").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"corpus.path: .* has no usable utterances in 'test' \(\d+ missing_file\)"):
        prepare_serially(CorpusSpec(path=str(own_corpus), max_quarantine=0.9), tmp_path)


def test_a_corpus_without_any_text_is_told_what_to_do_and_not_to_raise_the_limit(spoken: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "mute" / split).mkdir(parents=True)
        for file in list((spoken / "audio" / split).iterdir())[:2]:
            (tmp_path / "mute" / split / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError) as caught:
        prepare_serially(CorpusSpec(path=str(tmp_path / "mute")), tmp_path / "store")
    assert "4 of 4 utterances are unusable (4 no_text)" in caught.value.problem
    assert "give every utterance its text (in a folder: a.txt beside a.wav)" in caught.value.problem
    assert "raise the limit" not in caught.value.problem


@pytest.mark.parametrize("promised", [16_001, 2**36 - 1])
def test_a_flac_header_that_lies_about_its_length_takes_no_memory_on_its_word(promised: int) -> None:
    """Damage can leave any number."""
    data = bytearray(encode_flac(0.1 * np.ones(16_000, dtype=np.float32)))
    data[21:26] = ((data[21] >> 4 << 4 << 32) | promised).to_bytes(5, "big")
    with pytest.raises(BadAudioError) as caught:
        decode(bytes(data))
    assert caught.value.reason == "truncated"


def test_flac_of_unknown_length_is_read_to_its_end() -> None:
    """Streaming encoders write 0 for 'unknown': the samples are there all the same, unless the file is cut off."""
    samples = 0.1 * np.sin(np.arange(600_000) * 0.05).astype(np.float32)
    whole = encode_flac(samples)
    streamed = bytearray(whole)
    streamed[21:26] = (streamed[21] >> 4 << 4 << 32).to_bytes(5, "big")
    assert np.array_equal(decode(bytes(streamed)), decode(whole))
    with pytest.raises(BadAudioError) as caught:
        decode(bytes(streamed[: len(streamed) // 2]))
    assert caught.value.reason == "truncated"


def test_a_damaged_shard_is_named_and_made_anew_once_deleted(own_corpus: Path, tmp_path: Path) -> None:
    spec = CorpusSpec(path=str(own_corpus), row_group_seconds=10)
    folder, manifest = prepare_serially(spec, tmp_path)
    index = read_index(folder, manifest, "train")
    file = Path(folder, index.files[index.shard[0]])
    whole = file.read_bytes()
    entry = pq.read_table(f"{folder}/index.parquet").to_pylist()[-1]
    shard = Path(folder, manifest.shards[entry["shard"]].file)
    data = bytearray(shard.read_bytes())
    data[entry["offset"] + entry["bytes"] // 2] ^= 1  # one bit, in the audio
    shard.write_bytes(bytes(data))
    damaged = read_index(folder, manifest, manifest.shards[entry["shard"]].split)
    with pytest.raises(UserError, match=rf"{shard.name}: is damaged: .*delete it and run `foldray prepare` again"):
        RowReader(damaged)(len(damaged) - 1)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: is missing; run `foldray prepare` again"):
        RowReader(damaged)(len(damaged) - 1)
    stamp = file.stat().st_mtime_ns
    again, same = prepare_serially(spec, tmp_path)
    assert (again, same) == (folder, manifest)
    assert RowReader(damaged)(len(damaged) - 1)["id"] == damaged.ids[len(damaged) - 1].as_py()
    if shard != file:
        assert file.stat().st_mtime_ns == stamp, "shards that are whole stay"
    assert file.read_bytes() == whole
    file.write_bytes(whole[: len(whole) // 2])
    assert prepare_serially(spec, tmp_path)[1] == manifest
    assert file.read_bytes() == whole


@pytest.mark.parametrize(("kind", "reason"), [("WAV", "truncated"), ("AIFF", "truncated"), ("FLAC", "truncated")])
def test_a_file_that_was_cut_off_is_not_taken_for_a_short_one(kind: str, reason: str) -> None:
    target = io.BytesIO()
    soundfile.write(target, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000, format=kind, subtype="PCM_16")
    assert len(decode(target.getvalue())) == 32_000
    with pytest.raises(BadAudioError) as caught:
        decode(target.getvalue()[: len(target.getvalue()) * 3 // 4])
    assert caught.value.reason == reason


def test_text_that_ctc_cannot_write_is_set_aside_in_training_but_not_in_a_test_set(
    own_corpus: Path, tmp_path: Path
) -> None:
    """Repeated labels need a blank between them."""
    tone = (0.3 * np.sin(np.arange(16_000) * 0.05)).astype(np.float32)
    (own_corpus / "tone.wav").write_bytes(encode_wav(tone))
    texts = {"fits": "ABCDE ABCDE ABCDE ABCDE A", "repeats": "AABBC CDDEE AABBC CDDEE A", "long": "ABCDE " * 5}
    for split in ("train", "test"):
        with (own_corpus / f"{split}.jsonl").open("a") as manifest:
            for name, text in texts.items():
                manifest.write(json.dumps({"id": f"{split} {name}", "audio": "tone.wav", "text": text}) + "\n")
    folder, prepared = prepare_serially(CorpusSpec(path=str(own_corpus), max_quarantine=0.5), tmp_path)
    quarantine = pq.read_table(f"{folder}/quarantine.parquet").to_pylist()
    assert {e["id"]: e["reason"] for e in quarantine} == dict.fromkeys(
        ("train repeats", "train long"), "labels_longer_than_frames"
    )
    assert quarantine[0]["detail"].startswith("the text needs ")
    index = read_index(folder, prepared, "test")
    place = index.ids.to_pylist().index("test repeats")
    assert (index.num_labels[place], index.num_repeats[place]) == (25, 8)


@pytest.mark.parametrize("rate", [11_127, 47_999, 8_001, 22_050, 191_999])
def test_any_rate_is_resampled_without_a_giant_filter(rate: int) -> None:
    """The filter of 11,127 Hz alone would take gigabytes; within 25 Hz there is a small one."""
    near = near_rate(rate)
    assert abs(near - rate) <= 25
    assert (16_000 // math.gcd(near, 16_000)) * (near // math.gcd(near, 16_000)) <= 5_000_000
    tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(rate) / rate)
    heard = decode(encode_wav(tone, rate))
    assert abs(len(heard) - 16_000) <= 50
    assert abs(int(np.abs(np.fft.rfft(heard[:15_900], 16_000)).argmax()) - 400) <= 3


def test_no_more_is_decoded_than_may_be_kept() -> None:
    long = encode_wav(0.1 * np.sin(np.arange(16_000 * 20) * 0.05))
    with pytest.raises(BadAudioError, match="too_long"):
        decode(long, max_seconds=5)
    with pytest.raises(BadAudioError, match="too_long"):
        decode(io.BytesIO(long), declared_seconds=10.0, start=1.0, max_seconds=5)
    assert len(decode(io.BytesIO(long), declared_seconds=4.0, start=1.0, max_seconds=5)) == 64_000


def test_a_float_file_of_the_wrong_scale_is_clipped() -> None:
    with pytest.raises(BadAudioError, match="clipped"):
        decode(encode_wav(30_000 * np.sin(np.arange(16_000) * 0.05), subtype="FLOAT"))


def test_odd_names_and_halves_of_characters_are_set_aside_or_kept_but_end_nothing(
    own_corpus: Path, tmp_path: Path
) -> None:
    """A cut emoji, a path that no file can have, a place that nothing is read from, an offset beyond counting."""
    good = json.loads((own_corpus / "train.jsonl").read_text().splitlines()[0])["audio"]
    rows = [
        {"id": "half text", "audio": good, "text": "\ud83d"},
        {"id": "half \ud83d", "audio": good, "text": "HELLO"},
        {"id": "half path", "audio": "a\ud83d.wav", "text": "HELLO"},
        {"id": "nul", "audio": "a\0.wav", "text": "HELLO"},
        {"id": "long name", "audio": "a" * 300 + ".wav", "text": "HELLO"},
        {"id": "web", "audio": "http://example.org/a.wav", "text": "HELLO"},
        {"id": "far", "audio": good, "text": "HELLO", "offset": 1e305, "duration": 1.0},
        {"id": "again", "audio": "nowhere.wav", "text": "HELLO"},
        {"id": "again", "audio": good, "text": "HELLO"},
    ]
    with (own_corpus / "train.jsonl").open("a") as manifest:
        manifest.writelines(json.dumps(row) + "\n" for row in rows)
    folder, manifest = prepare_serially(CorpusSpec(path=str(own_corpus), max_quarantine=0.5), tmp_path)
    quarantine = pq.read_table(f"{folder}/quarantine.parquet").to_pylist()
    assert {e["id"]: e["reason"] for e in quarantine} == {
        "half text": "bad_text", "half path": "missing_file", "nul": "missing_file", "web": "missing_file",
        "long name": "missing_file", "far": "truncated", "again": "missing_file",
    }  # fmt: skip
    kept = ids_out(folder, manifest)
    assert {"half ?", "again"} <= set(kept), "a good row whose id a bad one had is kept"
    assert len(kept) + len(quarantine) == manifest.utterances_in


def test_a_bit_that_flipped_before_the_manifest_was_written_is_found_on_resuming(
    own_corpus: Path, tmp_path: Path
) -> None:
    folder, manifest = prepare_serially(CorpusSpec(path=str(own_corpus)), tmp_path)
    shard = max(Path(folder, "shards").iterdir(), key=lambda file: file.stat().st_size)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    Path(folder, "manifest.json").unlink()
    assert prepare_serially(CorpusSpec(path=str(own_corpus)), tmp_path)[1] == manifest
    assert shard.read_bytes() == whole
    Path(folder, "index.parquet").unlink()
    assert prepare_serially(CorpusSpec(path=str(own_corpus)), tmp_path)[1] == manifest
    assert Path(folder, "index.parquet").exists()
