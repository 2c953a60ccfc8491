"""Every layout gives the same utterances; what a source itself rules out has a reason and stays out of the way."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from foldray import storage
from foldray.config.corpus import CorpusSpec, Layout
from foldray.data.audio_files import with_sizes
from foldray.data.corpora import Corpus, find_corpus
from foldray.data.layouts import LAYOUTS, SourceFolder
from foldray.data.splits import split_names
from foldray.data.utterance import ContainerEntry, Utterance
from foldray.errors import UserError
from tests.support.corpus_writers import (
    LAYOUT_OF,
    WRITERS,
    add_member,
    encode,
    some_corpus,
    write_commonvoice,
    write_folder,
    write_kaldi,
    write_kaldi_segments,
    write_lhotse,
)

ITEMS = some_corpus()
EACH_WRITER = pytest.mark.parametrize("name", WRITERS)
Facts = set[tuple[str, str, str, str | None]]


def find(folder: Path, **fields: Any) -> Corpus:
    return find_corpus(CorpusSpec(path=str(folder), **fields), str(folder.parent / "store"))


def facts(corpus: Corpus) -> Facts:
    # The folder layout's ids are paths below the split.
    return {(u.id.rpartition("/")[2], u.split, u.speaker, u.text) for u in corpus.utterances}


def problems(corpus: Corpus) -> dict[str, str]:
    return {u.id: u.problem[0] for u in corpus.utterances if u.problem}


def only(corpus: Corpus, name: str) -> Utterance:
    (found,) = [u for u in corpus.utterances if u.id == name]
    return found


@EACH_WRITER
def test_all_layouts_say_the_same(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "c", ITEMS)
    corpus = find(tmp_path / "c")
    assert corpus.layout == LAYOUT_OF[name]
    assert facts(corpus) == {(i.id, i.split, i.speaker, i.text) for i in ITEMS}
    assert len(corpus.utterances) == len(ITEMS)
    assert not problems(corpus)
    assert all(u.bytes and u.row.startswith(str(tmp_path / "c")) for u in corpus.utterances)
    forced = find(tmp_path / "c", layout=corpus.layout)
    assert forced == corpus


@EACH_WRITER
def test_where_a_corpus_lies_is_not_what_it_is(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "c", ITEMS)
    first = find(tmp_path / "c").corpus_id
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c").rename(tmp_path / "elsewhere" / "c")
    assert find(tmp_path / "elsewhere" / "c").corpus_id == first


@EACH_WRITER
def test_a_bucket_is_listed_once_and_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an object store: nothing below the corpus folder is asked for one by one."""
    WRITERS[name](tmp_path / "c", ITEMS)
    local = find(tmp_path / "c")
    unsized = [u if u.entry else replace(u, bytes=None) for u in local.utterances]
    elsewhere = replace(unsized[0], audio=str(tmp_path / "elsewhere.wav"), entry=None, bytes=None)
    asked: list[list[str]] = []
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "filesystem_path", lambda uri: uri)
    monkeypatch.setattr(storage, "file_sizes", lambda uris: asked.append(uris) or [7] * len(uris))
    sized = with_sizes([*unsized, elsewhere], SourceFolder(str(tmp_path / "c")))
    assert sized == [*local.utterances, replace(elsewhere, bytes=7)]
    assert asked == [[elsewhere.audio]]


def test_audio_in_containers_is_where_its_place_says(tmp_path: Path) -> None:
    for name in ("webdataset", "parquet"):
        WRITERS[name](tmp_path / name, ITEMS)
        for utterance in find(tmp_path / name).utterances:
            item = next(i for i in ITEMS if i.id == utterance.id)
            place = utterance.entry
            assert place
            if place.kind == "bytes":
                data = Path(utterance.audio).read_bytes()[place.first : place.first + place.second]
                assert utterance.bytes == len(data)
            else:
                group = pq.ParquetFile(utterance.audio).read_row_group(place.first, columns=["audio"])
                data = group["audio"][place.second].as_py()["bytes"]
                assert 0 < (utterance.bytes or 0) < 2 * Path(utterance.audio).stat().st_size
            assert len(data) == len(encode(item))
            assert soundfile.info(io.BytesIO(data)).samplerate == item.rate


def test_segments_channels_and_durations(tmp_path: Path) -> None:
    seconds = {i.id: len(i.samples) / i.rate for i in ITEMS}
    for name in ("jsonl", "nemo", "kaldi", "commonvoice", "webdataset", "kaldi_segments"):
        WRITERS[name](tmp_path / name, ITEMS)
        for utterance in find(tmp_path / name).utterances:
            assert utterance.duration == pytest.approx(seconds[utterance.id], abs=1e-3)
            assert (utterance.start is None) == (name != "kaldi_segments")
    write_lhotse(tmp_path / "cuts", ITEMS)
    cuts = find(tmp_path / "cuts").utterances
    assert {u.start for u in cuts} == {None, 0.1}
    assert {round((u.start or 0) + (u.duration or 0), 3) for u in cuts} == {0.6}
    channels = {i.id: i.samples.shape[1] for i in ITEMS}
    assert all(u.channel == (1 if channels[u.id] == 2 else None) for u in cuts)


def test_finding_needs_neither_torch_nor_ray_nor_lhotse(tmp_path: Path) -> None:
    write_kaldi(tmp_path / "c", ITEMS[:9])
    code = (
        "import sys\nfrom foldray.data.corpora import find_corpus\nfrom foldray.config.spec import CorpusSpec\n"
        f"find_corpus(CorpusSpec(path={str(tmp_path / 'c')!r}), 'store')\n"
        "assert not {'torch', 'ray', 'lhotse', 'soundfile'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Splits ----------------------------------------------------------------------------------------


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def splits_of(corpus: Corpus) -> dict[str, set[str]]:
    names = {u.split for u in corpus.utterances}
    return {name: {u.speaker for u in corpus.utterances if u.split == name} for name in names}


SPEAKERS = {split: {i.speaker for i in ITEMS if i.split == split} for split in ("train", "valid", "test")}


@pytest.mark.parametrize("alias", ["dev", "validation", "val"])
def test_other_names_of_valid_and_test(alias: str, tmp_path: Path) -> None:
    write_kaldi(tmp_path, ITEMS)
    rename(tmp_path, "valid", alias)
    rename(tmp_path, "test", "eval")
    assert splits_of(find(tmp_path)) == SPEAKERS
    assert splits_of(find(tmp_path, splits=("train", alias, "test"))) == SPEAKERS


@EACH_WRITER
def test_sources_are_named_by_file_folder_or_stem(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path, ITEMS)
    dev = {"librispeech": "dev-clean", "commonvoice": "dev"}.get(name, "valid")
    train, test = ("train-clean-100", "test-clean") if name == "librispeech" else ("train", "test")
    corpus = find(tmp_path, splits=(f"train={dev}+{test}", f"test={train}"))
    assert splits_of(corpus)["test"] == SPEAKERS["train"]
    assert splits_of(corpus)["train"] == SPEAKERS["valid"] | SPEAKERS["test"]
    assert split_names(CorpusSpec(path="x", splits=("train=a+b", "valid", "test=c"))) == ("train", "valid", "test")


def test_a_missing_valid_is_carved_from_train(tmp_path: Path) -> None:
    for name in ("jsonl", "webdataset", "librispeech"):
        WRITERS[name](tmp_path / name, [i for i in ITEMS if i.split != "valid"])
        found = splits_of(find(tmp_path / name, valid_fraction=0.3))
        assert set(found) == {"train", "valid", "test"}
        assert found["train"] | found["valid"] == SPEAKERS["train"]
        named = find(tmp_path / name, valid_fraction=0.3, splits=("train", "valid"))
        assert set(splits_of(named)) == {"train", "valid"}


def test_cross_validation_tests_every_speaker_once(tmp_path: Path) -> None:
    names = [f"speaker-{number}" for number in range(13)]
    items = [
        ITEMS[0]._replace(id=f"{name}-{i}", speaker=name, split="test" if i else "train")
        for name in names
        for i in range(3)
    ]
    WRITERS["jsonl"](tmp_path, items)
    parts = [splits_of(find(tmp_path, valid_fraction=0.2, cross_validate=f"{number}/4")) for number in (1, 2, 3, 4)]
    assert sorted(name for part in parts for name in part["test"]) == sorted(names)
    for part in parts:
        assert len(part["test"]) in (3, 4)
        assert part["valid"]
        assert sorted([*part["train"], *part["valid"], *part["test"]]) == sorted(names), "no speaker is in two splits"
    ids = {find(tmp_path, **fields).corpus_id for fields in ({}, {"cross_validate": "1/4"}, {"cross_validate": "2/4"})}
    assert len(ids) == 3
    for part in ("1/14", "14/14"):  # where one part would be empty all are refused, before hours of training
        with pytest.raises(UserError, match="14 parts of 13 speakers; use fewer parts"):
            find(tmp_path, cross_validate=part)
    assert {len(splits_of(find(tmp_path, cross_validate=f"{number}/13"))["test"]) for number in range(1, 14)} == {1}
    for part in ("0/4", "5/4", "1/1", "1", "a/b", "-1/4", ""):
        with pytest.raises(ValueError, match="must be a part and the number of parts"):
            CorpusSpec(path="x", cross_validate=part)


def test_cross_validation_of_one_set_of_unequal_speakers(tmp_path: Path) -> None:
    """A corpus without a test set is what it is for; a speaker who has most of it has a part to himself."""
    sizes = {"a": 40, "b": 60, "c": 3, "d": 2}
    items = [ITEMS[0]._replace(id=f"{name}-{i}", speaker=name) for name, size in sizes.items() for i in range(size)]
    WRITERS["jsonl"](tmp_path, items)
    for splits in (("train",), ("train", "valid")):
        parts = [splits_of(find(tmp_path, splits=splits, cross_validate=f"{n}/2")) for n in (1, 2)]
        assert [part["test"] for part in parts] == [{"b"}, {"a", "c", "d"}]
        assert all(set(part) <= {"train", "test", *splits} for part in parts)
    WRITERS["jsonl"](tmp_path, [items[0], items[-1]._replace(speaker="")])
    with pytest.raises(UserError, match="1 of 2 utterances have no speaker"):
        find(tmp_path, splits=("train",), cross_validate="1/2")


def test_librispeech_takes_every_part_of_train_and_the_clean_others(tmp_path: Path) -> None:
    home = tmp_path / "LibriSpeech"
    WRITERS["librispeech"](home, ITEMS)
    for old, new in (("train-clean-100/1004", "train-other-500/1004"), ("test-clean/1003", "test-other/1003")):
        (home / new).parent.mkdir()
        (home / old).rename(home / new)
    (home / "test-clean").rmdir()
    for folder in (tmp_path, home):
        assert splits_of(find(folder)) == SPEAKERS
    WRITERS["librispeech"](home, [i._replace(id="9-9-0000", speaker="9") for i in ITEMS if i.split == "test"][:1])
    assert splits_of(find(home))["test"] == {"9"}
    parts = splits_of(find(tmp_path, splits=("train=train-other-500", "test=test-clean+test-other")))
    assert parts == {"train": {"1004"}, "test": {"9", "1003"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"splits": ("train", "test", "other")},
            r"^corpus\.path: .* has no other \(kaldi: .*it contains audio/, test/",
        ),
        ({"splits": ("train", "valid=nine")}, r"^corpus\.path: .* has no nine \(kaldi"),
        ({"splits": ("train=train+valid", "valid")}, r"^corpus\.splits: 'train=train\+valid' and 'valid' both contain"),
        ({"splits": ("train", "train=valid")}, r"^corpus\.splits: 'train' is used twice"),
        ({"splits": ("train=", "test")}, r"^corpus\.splits: 'train=' is not a split"),
        ({"splits": ("a/b",)}, r"^corpus\.splits: 'a/b' is not a split"),
        ({"layout": "parquet"}, r"^corpus\.path: .* is not laid out as parquet \(train-\*\.parquet"),
        ({"splits": ("no",)}, r"^corpus\.path: .* has none of the known layouts \(jsonl, .*it contains audio/, test/"),
    ],
)
def test_splits_that_cannot_be_get_one_line(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_kaldi(tmp_path, ITEMS)
    with pytest.raises(UserError, match=message) as caught:
        find(tmp_path, **fields)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"corpus.path: .*train\.jsonl is a file, not a folder; give the folder"):
        find(tmp_path / "train.jsonl")


@pytest.mark.parametrize("name", ["jsonl", "commonvoice", "lhotse", "parquet"])
def test_audio_that_lies_elsewhere(name: str, tmp_path: Path) -> None:
    folder, root = tmp_path / "c", tmp_path / "root"
    WRITERS[name](folder, ITEMS)
    if name == "parquet":
        for file in (folder / "data").iterdir():
            table = pq.read_table(file)
            rows = [{**row, "audio": {"bytes": None, "path": row["audio"]["path"]}} for row in table.to_pylist()]
            pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
        audio = [root / f"{item.id}.{item.ending}" for item in ITEMS]
        root.mkdir()
        for item, path in zip(ITEMS, audio, strict=True):
            path.write_bytes(encode(item))
    elif name == "commonvoice":
        (folder / "clips").rename(root)
    else:
        root.mkdir()
        (folder / "audio").rename(root / "audio")
        assert all(u.bytes is None for u in find(folder).utterances)
    corpus = find(folder, audio_root=str(root))
    assert all(u.bytes and u.audio.startswith(f"{root}/") for u in corpus.utterances)
    moved = root.rename(tmp_path / "moved")
    assert find(folder, audio_root=str(moved)).corpus_id == corpus.corpus_id


def test_relative_paths_are_resolved_by_name() -> None:
    place = SourceFolder("s3://bucket/c?region=x")
    base = place.uri("train")
    assert place.audio("a.wav", base) == "s3://bucket/c/train/a.wav?region=x"
    assert place.audio("../audio/./a.wav", base) == "s3://bucket/c/audio/a.wav?region=x"
    assert place.audio("../../../../a.wav", base) == "s3://bucket/a.wav?region=x"
    assert place.audio("/data/a.wav", base) == "/data/a.wav"
    assert place.audio("s3://other/a.wav", base) == "s3://other/a.wav"
    assert SourceFolder("/c", "/other").audio("x/../a.wav", "/c/train") == "/other/a.wav"


# --- JSON lines ------------------------------------------------------------------------------------


def test_a_split_of_several_manifests_in_a_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for part in range(2):
            file = tmp_path / split / f"part{part}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps({"audio": f"{part}.wav", "text": "A", "id": f"{split}{part}"}) + "\n")
    corpus = find(tmp_path, valid_fraction=0)
    assert [(u.id, u.audio) for u in corpus.utterances][:2] == [
        ("train0", f"{tmp_path}/train/0.wav"),
        ("train1", f"{tmp_path}/train/1.wav"),
    ]


# --- Kaldi -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1 sph2pipe -f wav a.sph |", r"train/wav\.scp:2: is a shell command, which is never executed"),
        ("u1 | cat", r"train/wav\.scp:2: is a shell command"),
        ("u1 raw.ark:123", r"train/wav\.scp:2: points into a Kaldi archive"),
        ("u1 raw.ark:123[0:9]", r"train/wav\.scp:2: points into a Kaldi archive"),
        ("u1", r"train/wav\.scp:2: names no audio file"),
    ],
)
def test_commands_and_archives_are_refused(line: str, message: str, tmp_path: Path) -> None:
    write_kaldi(tmp_path, ITEMS)
    scp = tmp_path / "train" / "wav.scp"
    first, *rest = scp.read_text().splitlines()
    scp.write_text("\n".join([first, line, *rest]))
    with pytest.raises(UserError, match=message):
        find(tmp_path)


def test_kaldi_gaps_have_reasons(tmp_path: Path) -> None:
    write_kaldi(tmp_path, ITEMS)
    with (tmp_path / "train" / "text").open("a") as text:
        text.write("ghost NOBODY SAID THIS\n")
    with (tmp_path / "train" / "wav.scp").open("a") as scp:
        scp.write("mute\t../audio/1001-1-0000.wav\n1001-1-0000 ../audio/1001-1-0000.wav\n")
    corpus = find(tmp_path)
    assert problems(corpus) == {"ghost": "missing_file"}
    assert only(corpus, "mute").text is None
    assert only(corpus, "1001-1-0000"), "a line that is repeated counts once"
    with (tmp_path / "train" / "wav.scp").open("a") as scp:
        scp.write("1001-1-0000 ../audio/other.wav\n")
    assert sum(u.id == "1001-1-0000" for u in find(tmp_path).utterances) == 2, "the second becomes a duplicate later"
    with (tmp_path / "train" / "text").open("a") as text:
        text.write("ghost NOBODY SAID THIS\r\nghost AGAIN\n")
    with pytest.raises(UserError, match=r"text:\d+: 'ghost' has 'AGAIN' here and 'NOBODY SAID THIS' at .*text:\d+"):
        find(tmp_path)


def test_bad_segments_have_reasons(tmp_path: Path) -> None:
    write_kaldi_segments(tmp_path, ITEMS)
    name = (tmp_path / "train" / "wav.scp").read_text().split()[0]
    bad = {"end": "0.1 -2", "empty": "0.2 0.2", "back": "0.3 0.1", "word": "a b", "nan": "0 nan", "one": "1"}
    bad |= {"early": "-1 1", "channel": "0 1 C", "more": "0 1 A B"}
    with (tmp_path / "train" / "segments").open("a") as segments:
        segments.writelines(f"{key} {name} {numbers}\n" for key, numbers in bad.items())
        segments.write(f"lost nowhere 0 1\nleft {name} 0 0.5 A\nrest {name} 0.1 -1\n")
    corpus = find(tmp_path)
    assert problems(corpus) == {**dict.fromkeys(bad, "bad_segment"), "lost": "missing_file"}
    assert (only(corpus, "left").channel, only(corpus, "left").start) == (0, 0.0)
    assert (only(corpus, "rest").start, only(corpus, "rest").duration) == (0.1, None)


# --- Common Voice, LibriSpeech, folders ------------------------------------------------------------


def test_common_voice_quotes_are_letters_and_short_rows_have_reasons(tmp_path: Path) -> None:
    write_commonvoice(tmp_path, ITEMS)
    with (tmp_path / "train.tsv").open("a") as table:
        table.write('s\tq.mp3\t"SAID" SHE\t2\ten\n')
        table.write("s\tshort.mp3\tA\n")
    corpus = find(tmp_path)
    assert only(corpus, "q").text == '"SAID" SHE'
    assert only(corpus, "q").bytes is None
    assert problems(corpus) == {"short": "bad_metadata"}
    (tmp_path / "test.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match=r"test\.tsv:1: has no columns path and sentence"):
        find(tmp_path)


def test_librispeech_gaps_have_reasons(tmp_path: Path) -> None:
    WRITERS["librispeech"](tmp_path, ITEMS)
    (tmp_path / "dev-clean/1002/1/1002-1-0000.flac").unlink()
    (tmp_path / "dev-clean/1002/1/1002-1-0009.flac").write_bytes(encode(ITEMS[0], "flac"))
    corpus = find(tmp_path)
    assert problems(corpus) == {"1002-1-0000": "missing_file"}
    assert only(corpus, "1002-1-0009").text is None


def test_sidecars_without_audio_and_audio_twice(tmp_path: Path) -> None:
    write_folder(tmp_path, ITEMS)
    train = tmp_path / "train"
    (train / "alone.txt").write_text("A")
    (train / "mute.WAV").write_bytes(encode(ITEMS[0]))
    (train / "twice.flac").write_bytes(encode(ITEMS[0], "flac"))
    (train / "twice.wav").write_bytes(encode(ITEMS[0], "wav"))
    (train / "twice.lab").write_text("B")
    (train / "twice.txt").write_text("A")
    (train / ".hidden.wav").write_bytes(b"")
    corpus = find(tmp_path)
    found = [(u.id, u.text, u.problem and u.problem[0]) for u in corpus.utterances if "/" not in u.id]
    assert found == [
        ("alone", "A", "missing_file"),
        ("mute", None, "no_text"),
        ("twice", "A", None),
        ("twice", "A", "duplicate_id"),
    ]


# --- WebDataset ------------------------------------------------------------------------------------


def write_tar(file: Path, build: Callable[[tarfile.TarFile], None]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        build(tar)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(target.getvalue())
    return target.getvalue()


def one_tar(tmp_path: Path, build: Callable[[tarfile.TarFile], None]) -> Corpus:
    write_tar(tmp_path / "c" / "test" / "a.tar", build)
    return find(tmp_path / "c", splits=("test",))


def test_members_out_of_place_have_reasons(tmp_path: Path) -> None:
    def build(tar: tarfile.TarFile) -> None:
        for name in ("a.wav", "b.wav", "b.txt", "a.txt", "./sub.d/c.x.wav", "./sub.d/c.txt"):
            add_member(tar, name, b"TEXT")
        for name in ("/etc/d.wav", "/etc/d.txt", "../e.wav", "x/../../f.txt"):
            add_member(tar, name, b"TEXT")
        for key, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("dev", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(f"{key}.wav")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
            add_member(tar, f"{key}.txt", b"TEXT")
        folder = tarfile.TarInfo("g.wav")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        named = ("h.wav", "h.flac", "h.txt", "i.json", "j.wav", "j.json", "k.wav", "k.json")
        for name in (*named, "l.cls", ".m.wav", "README"):
            add_member(tar, name, b'{"duration": "long"}' if name == "k.json" else b"TEXT")
        add_member(tar, "n.wav", b"")
        add_member(tar, "n.txt", b"x" * (2**20 + 1))

    corpus = one_tar(tmp_path, build)
    said = [(u.id, u.problem[0] if u.problem else u.text) for u in corpus.utterances]
    assert said == [
        ("a", "interleaved"), ("b", "TEXT"), ("sub.d/c", "TEXT"),
        ("/etc/d", "unsafe_path"), ("../e", "unsafe_path"), ("x/../../f", "unsafe_path"),
        ("link", "not_a_file"), ("hard", "not_a_file"), ("dev", "not_a_file"),
        ("h", "TEXT"), ("h", "duplicate_id"), ("i", "bad_metadata"), ("j", "bad_metadata"), ("k", "bad_metadata"),
        ("l", "missing_file"), ("n", "bad_metadata"),
    ]  # fmt: skip


def test_what_came_whole_of_a_damaged_tar_stays(tmp_path: Path) -> None:
    def build(tar: tarfile.TarFile) -> None:
        for item in ITEMS[:3]:
            add_member(tar, f"{item.id}.txt", item.text.encode())
            add_member(tar, f"{item.id}.{item.ending}", encode(item))

    file = tmp_path / "c" / "test" / "a.tar"
    whole = write_tar(file, build)
    good = find(tmp_path / "c", splits=("test",))
    assert not problems(good)
    place = good.utterances[2].entry
    assert place
    first, second, third = (i.id for i in ITEMS[:3])
    tar, text_alone = {"a.tar": "unreadable"}, {"a.tar": "unreadable", third: "missing_file"}
    damaged = {
        "within audio": (whole[: place.first + place.second // 2], text_alone, {first, second}),
        "no end": (whole[: place.first + -(-place.second // 512) * 512], tar, {first, second, third}),
        "within a text": (whole[: place.first - 1024], tar, {first, second}),
        "a head": (
            whole[: place.first - 400] + b"\xff" * 200 + whole[place.first - 200 :],
            text_alone,
            {first, second},
        ),
        "nothing": (b"", tar, set()),
        "no tar": (b"not a tar" * 999, tar, set()),
    }
    for name, (data, expected, kept) in damaged.items():
        file.write_bytes(data)
        corpus = find(tmp_path / "c", splits=("test",))
        assert problems(corpus) == expected, name
        assert {u.id for u in corpus.utterances if not u.problem} == kept, name


def test_compressed_tars_are_refused_and_shards_may_share_keys(tmp_path: Path) -> None:
    def build(tar: tarfile.TarFile) -> None:
        add_member(tar, "a.wav", b"audio")
        add_member(tar, "a.txt", b"TEXT")

    for number in range(2):
        write_tar(tmp_path / "c" / f"test-{number}.tar", build)
    assert [u.id for u in find(tmp_path / "c", splits=("test",)).utterances] == [
        "test-0/a",
        "test-1/a",
    ]
    (tmp_path / "c" / "test-2.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=r"test-2\.tar\.gz: is compressed.*unpack it to a plain \.tar"):
        find(tmp_path / "c", splits=("test",))


# --- Parquet ---------------------------------------------------------------------------------------


def write_rows(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Corpus:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet", row_group_size=2, **options)
    return find(folder, splits=("test",))


@pytest.mark.parametrize("statistics", [True, False])
def test_parquet_rows_without_bytes_name_files(statistics: bool, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"audio": {"bytes": b"x" * 99, "path": "a.wav"}, "text": "A", "id": 7, "duration": 1.5},
        {"audio": {"bytes": b"x" * 99, "path": None}, "text": None, "id": None, "duration": None},
        {"audio": {"bytes": None, "path": "sub/b.wav"}, "text": "B", "id": "", "duration": 0.0},
        {"audio": {"bytes": b"x", "path": "c.wav"}, "text": "C", "id": None, "duration": None},
        {"audio": None, "text": "D", "id": None, "duration": None},
    ]
    rows = [{**row, "id": None if row["id"] is None else str(row["id"])} for row in rows]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.wav").write_bytes(b"12345")
    corpus = write_rows(tmp_path, rows, write_statistics=statistics)
    file = f"{tmp_path}/test.parquet"
    assert [(u.id, u.text, u.audio, u.entry) for u in corpus.utterances] == [
        ("7", "A", file, ContainerEntry("row", 0, 0)),
        ("test-1", None, file, ContainerEntry("row", 0, 1)),
        ("b", "B", f"{tmp_path}/sub/b.wav", None),
        ("c", "C", file, ContainerEntry("row", 1, 1)),
        ("test-4", "D", "", None),
    ]
    assert problems(corpus) == {"test-4": "missing_file"}
    assert (corpus.utterances[0].duration, corpus.utterances[2].duration) == (1.5, None)
    assert corpus.utterances[2].bytes == 5


def test_parquet_of_plain_binary_and_what_is_no_corpus(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "plain", [{"audio": b"abc", "text": "A"}] * 3)
    assert [(u.id, u.entry) for u in corpus.utterances][2] == ("test-2", ContainerEntry("row", 1, 0))
    with pytest.raises(UserError, match=r"test\.parquet: has no text: none of the columns text, .*, but audio, words"):
        write_rows(tmp_path / "a", [{"audio": b"abc", "words": "A"}])
    with pytest.raises(UserError, match=r"test\.parquet: has no column audio of bytes .*, but audio, text"):
        write_rows(tmp_path / "b", [{"audio": "a.wav", "text": "A"}])
    (tmp_path / "plain" / "test.parquet").write_bytes(b"PAR1 no more")
    assert problems(find(tmp_path / "plain", splits=("test",))) == {"test.parquet": "unreadable"}


# --- Lhotse ----------------------------------------------------------------------------------------


def test_cuts_that_need_more_than_a_reader(tmp_path: Path) -> None:
    from lhotse import CutSet, Recording
    from lhotse.audio import AudioSource
    from lhotse.cut import MultiCut

    write_lhotse(tmp_path, ITEMS)
    cuts = list(CutSet.from_jsonl_lazy(tmp_path / "cuts_train.jsonl.gz"))
    mono = next(cut for cut in cuts if cut.recording.num_channels == 1)

    def sourced(name: str, sources: list[AudioSource]) -> Any:
        recording = Recording("r", sources, 16_000, 9_600, 0.6, channel_ids=[0])
        return mono.with_id(name) if not sources else _with_recording(mono.with_id(name), recording)

    odd = {
        "faster": mono.perturb_speed(1.1).with_id("faster"),
        "mixed": mono.append(mono).with_id("mixed"),
        "padded": mono.pad(duration=5).with_id("padded"),
        "multi": MultiCut("multi", 0, 0.6, [0, 1], recording=mono.recording),
        "command": sourced("command", [AudioSource("command", [0], "touch /tmp/never")]),
        "two": sourced("two", [AudioSource("file", [0], "a.wav"), AudioSource("file", [1], "b.wav")]),
    }
    good = Path(tmp_path / "cuts_test.jsonl.gz").read_bytes()
    CutSet.from_cuts(odd.values()).to_file(tmp_path / "more.jsonl.gz")
    lines = gzip.decompress((tmp_path / "more.jsonl.gz").read_bytes()) + b'{"type": "MonoCut", "id": "half"}\n[1]\n'
    (tmp_path / "cuts_test.jsonl.gz").write_bytes(gzip.compress(lines + gzip.decompress(good)))
    corpus = find(tmp_path)
    listed = problems(corpus)
    assert len(listed) == 8
    assert set(listed.values()) == {"unsupported_cut"}
    assert {*odd, "half"} < set(listed)
    assert len([u for u in corpus.utterances if u.split == "test" and not u.problem]) == 3


def _with_recording(cut: Any, recording: Any) -> Any:
    cut.recording = recording
    return cut


def test_a_damaged_cut_manifest(tmp_path: Path) -> None:
    write_lhotse(tmp_path, ITEMS)
    file = tmp_path / "cuts_test.jsonl.gz"
    data = file.read_bytes()
    file.write_bytes(data[:-9])
    assert problems(find(tmp_path)) == {"cuts_test.jsonl.gz": "unreadable"}
    file.write_bytes(gzip.compress(gzip.decompress(data) + b"{no json\n"))
    with pytest.raises(UserError, match=r"cuts_test\.jsonl\.gz:4: is not JSON"):
        find(tmp_path)


def test_without_lhotse_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lhotse(tmp_path, ITEMS)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lhotse"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(UserError, match=r"needs the extra 'lhotse': pip install 'foldray\[lhotse\]'"):
        find(tmp_path)


def test_every_layout_is_in_the_spec() -> None:
    assert set(get_args(Layout)) == {"auto", *LAYOUTS}


def test_audio_and_texts_side_by_side_are_a_split_of_their_own(tmp_path: Path) -> None:
    for item in ITEMS[:3]:
        (tmp_path / f"{item.id}.wav").write_bytes(b"RIFF")
        (tmp_path / f"{item.id}.txt").write_text(item.text)
    found = find_corpus(CorpusSpec(path=str(tmp_path), splits=("train=.",)), str(tmp_path / "store"))
    assert found.layout == "folder"
    assert {u.id: u.text for u in found.utterances} == {item.id: item.text for item in ITEMS[:3]}


def test_kaldi_folders_below_data(tmp_path: Path) -> None:
    WRITERS["kaldi"](tmp_path / "data", ITEMS)
    assert find(tmp_path).layout == "kaldi"
    assert {u.id for u in find(tmp_path).utterances} == {item.id for item in ITEMS}


def test_validation_is_carved_from_what_can_be_used(tmp_path: Path) -> None:
    """Rows without a speaker count for themselves, and broken ones would be the first to be chosen."""
    (tmp_path / "good.wav").write_bytes(b"RIFF")
    rows = [{"id": f"bad-{i}", "audio": f"nowhere-{i}.wav", "text": "A"} for i in range(50)]
    rows += [{"id": f"good-{i}", "audio": "good.wav", "text": "A", "speaker": f"s{i % 4}"} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = CorpusSpec(path=str(tmp_path), splits=("train", "valid"), valid_fraction=0.2)
    valid = [u.id for u in find_corpus(spec, str(tmp_path)).utterances if u.split == "valid"]
    assert valid
    assert all(name.startswith("good") for name in valid)
