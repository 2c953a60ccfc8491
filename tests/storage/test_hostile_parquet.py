"""Parquet files of anybody: no value runs code, and no file decodes to more than the limits."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foldray.data.layouts import SourceFolder
from foldray.data.layouts.parquet import read_parquet
from foldray.data.manifest import INDEX_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA, read_quarantine
from foldray.data.reader import read_rows
from foldray.errors import DamagedFileError, UserError
from foldray.results.rows import SCHEMAS, read_files
from foldray.storage import parquet
from foldray.storage.parquet import open_local, parse_parquet, read_row_group, read_table
from tests.support.rows import row

NAME = "test.pickled"


class _Scalar(pa.ExtensionScalar):
    def as_py(self, **_: object) -> object:
        return pickle.loads(self.value.as_py())


class _Pickled(pa.ExtensionType):
    """What Ray Data registers as `ray.data.arrow_pickled_object`, under a name of its own."""

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), NAME)

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _serialized: bytes) -> "_Pickled":
        return cls()

    def __arrow_ext_scalar_class__(self) -> type:
        return _Scalar


class _Exploit:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(params=["registered", "unknown"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[pa.Field, bytes]]:
    """A field with the extension type and a value that leaves a trace; only the registered type can run it."""
    if request.param == "registered":
        pa.register_extension_type(_Pickled())
    try:
        metadata = {"ARROW:extension:name": NAME, "ARROW:extension:metadata": ""}
        yield pa.field("value", pa.large_binary(), metadata=metadata), pickle.dumps(_Exploit(tmp_path / "ran"))
    finally:
        if request.param == "registered":
            pa.unregister_extension_type(NAME)


def _nestings(field: pa.Field) -> dict[str, pa.DataType]:
    return {
        "struct": pa.struct([field, pa.field("path", pa.string())]),
        "list": pa.list_(field),
        "deep": pa.struct([pa.field("inner", pa.list_(pa.struct([field])))]),
        "map": pa.map_(pa.string(), field),
    }


def _nested_value(kind: str, value: bytes) -> object:
    values: dict[str, object] = {
        "struct": {"value": value},
        "list": [value],
        "deep": {"inner": [{"value": value}]},
        "map": [("a", value)],
    }
    return values[kind]


def _write(file: Path, *columns: tuple[pa.Field, object]) -> str:
    schema = pa.schema([field for field, _ in columns])
    arrays = [pa.array([value], _storage(field.type)) for field, value in columns]
    plain = pa.table(arrays, pa.schema([field.with_type(_storage(field.type)) for field in schema]))
    pq.write_table(plain, file)
    return str(file)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


@pytest.mark.parametrize("kind", ["struct", "list", "deep", "map"])
def test_an_extension_type_is_refused_wherever_it_is_nested(
    hostile: tuple[pa.Field, bytes], kind: str, tmp_path: Path
) -> None:
    field, value = hostile
    column = pa.field("audio", _nestings(field)[kind])
    file = _write(tmp_path / "a.parquet", (column, _nested_value(kind, value)))
    with pytest.raises(UserError, match=rf"a\.parquet: column 'audio' has the extension type {NAME}; write it"):
        read_row_group(file, 0, ["audio"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("column", ["text", "id", "speaker", "language", "duration"])
def test_a_corpus_never_runs_its_values(hostile: tuple[pa.Field, bytes], column: str, tmp_path: Path) -> None:
    field, value = hostile
    columns = {"audio": (pa.field("audio", pa.binary()), b"RIFF"), "text": (pa.field("text", pa.string()), "A")}
    columns[column] = (field.with_name(column), value)
    file = _write(tmp_path / "train.parquet", *columns.values())
    with pytest.raises(UserError, match=f"column '{column}' has the extension type {NAME}"):
        list(read_parquet(file, "train", SourceFolder(str(tmp_path))))
    assert not (tmp_path / "ran").exists()


def test_a_column_that_is_not_read_may_have_any_type(hostile: tuple[pa.Field, bytes], tmp_path: Path) -> None:
    field, value = hostile
    audio, text = (pa.field("audio", pa.binary()), b"RIFF"), (pa.field("text", pa.string()), "A")
    file = _write(tmp_path / "train.parquet", audio, text, (field.with_name("features"), value))
    (utterance,) = read_parquet(file, "train", SourceFolder(str(tmp_path)))
    assert (utterance.text, utterance.problem) == ("A", None)
    assert not (tmp_path / "ran").exists()


def test_a_store_never_runs_its_values(hostile: tuple[pa.Field, bytes], tmp_path: Path) -> None:
    field, value = hostile
    for name, schema in (("shard", SHARD_SCHEMA), ("quarantine", QUARANTINE_SCHEMA), ("results", SCHEMAS["results"])):
        columns = [(field.with_name(each), value) for each in schema.names]
        _write(tmp_path / f"{name}.parquet", *columns)
    with pytest.raises(UserError, match="has the extension type"):
        read_rows(str(tmp_path), "shard.parquet", 0)
    with pytest.raises(UserError, match="has the extension type"):
        read_quarantine(str(tmp_path))
    with pytest.raises(UserError, match="has the extension type"):
        read_files("results", [tmp_path / "results.parquet"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.main
def test_the_type_that_ray_data_unpickles_is_refused(tmp_path: Path) -> None:
    import ray.data  # noqa: F401  # registers the type

    field = pa.field("text", pa.large_binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    value = pickle.dumps(_Exploit(tmp_path / "ran"))
    file = _write(tmp_path / "train.parquet", (pa.field("audio", pa.binary()), b"RIFF"), (field, value))
    with pytest.raises(UserError, match=r"extension type ray\.data\.arrow_pickled_object"):
        list(read_parquet(file, "train", SourceFolder(str(tmp_path))))
    assert not (tmp_path / "ran").exists()


def _bomb(file: Path, column: str, kind: pa.DataType, size: int, rows: int) -> str:
    """One value of `size` bytes in every row: some kilobytes of Parquet."""
    value = pa.array(["A" * size], pa.string()).cast(kind)
    column_of = {column: pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), value)}
    text = {} if column == "text" else {"text": ["A"] * rows}
    audio = {} if column == "audio" else {"audio": pa.array([b"RIFF"] * rows)}
    pq.write_table(pa.table({**audio, **text, **column_of}), file, compression="zstd", store_schema=False)
    return str(file)


def test_texts_that_decode_to_gigabytes_are_quarantined(tmp_path: Path) -> None:
    file = _bomb(tmp_path / "train.parquet", "text", pa.string(), 2**21, 40)
    assert Path(file).stat().st_size < 20_000
    kept = list(read_parquet(file, "train", SourceFolder(str(tmp_path))))
    assert len(kept) == 40
    assert {each.problem for each in kept} == {("bad_metadata", "the text has 2,097,152 characters, over 1,048,576")}
    assert {each.text for each in kept} == {""}


def test_a_row_group_that_decodes_to_more_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 2**24)
    file = _bomb(tmp_path / "train.parquet", "audio", pa.binary(), 2**20, 64)
    with pytest.raises(pa.ArrowInvalid, match="row group 0 takes over 16,777,216 bytes decoded"):
        read_row_group(file, 0, ["audio"])
    assert read_row_group(file, 0, ["text"]).num_rows == 64


def test_more_rows_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROWS", 3)
    pq.write_table(pa.table({"text": pa.nulls(4, pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(pa.ArrowInvalid, match="it has 4 rows, over the limit of 3"):
        open_local(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pa.table({"id": ["a"]}), "it has no column split"),
        (pa.table({"id": ["a"], "split": pa.array([None], pa.string())}), "column split has 1 rows without a value"),
        (pa.table({"id": ["a"], "split": [[1]]}), "Unsupported cast"),
        (pa.table({"id": pa.array([b"\xff"]).cast(pa.string(), safe=False), "split": ["a"]}), "UTF8"),
    ],
)
def test_a_damaged_file_of_a_corpus_is_named(table: pa.Table, problem: str, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "index.parquet")
    schema = pa.schema([INDEX_SCHEMA.field("id"), INDEX_SCHEMA.field("split")])
    with pytest.raises(DamagedFileError, match=rf"index\.parquet: is damaged \(.*{problem}"):
        read_table(str(tmp_path / "index.parquet"), schema)


@pytest.mark.parametrize("column", ["wer", "depth", "versions", "created"])
def test_a_result_row_without_a_value_is_refused(column: str, tmp_path: Path) -> None:
    rows = [{**row(), column: None}]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMAS["results"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: can't be read as results \(column {column} has 1 rows"):
        read_files("results", [tmp_path / "a.parquet"])


def _understate(file: Path) -> None:
    """Let the footer state one byte for each column: zigzag varints of the same lengths."""
    data = bytearray(file.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    group = pq.read_metadata(file).row_group(0)
    for size in (group.column(i).total_uncompressed_size for i in range(group.num_columns)):
        number, coded = 2 * size, bytearray()
        while number:
            coded.append(number & 0x7F | (0x80 if number > 0x7F else 0))
            number >>= 7
        at = data.index(coded, footer)
        data[at : at + len(coded)] = bytes([0x82, *[0x80] * (len(coded) - 2), 0x00])
    file.write_bytes(data)
    lied = pq.read_metadata(file).row_group(0)
    assert {lied.column(i).total_uncompressed_size for i in range(lied.num_columns)} == {1}


def test_a_footer_that_understates_sizes_makes_no_batch_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**22)
    file = tmp_path / "train.parquet"
    _bomb(file, "text", pa.string(), 2**20, 30)
    _understate(file)
    sizes = [batch.nbytes for batch in open_local(file).batches(0, ["text"])]
    assert max(sizes) < 2**22
    assert sum(sizes) > 30 * 2**20


@pytest.mark.parametrize("size", [2**20, 2**10])
def test_an_index_that_expands_is_refused(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 2**23)
    file = _bomb(tmp_path / "index.parquet", "id", pa.string(), size, 64)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    if size == 2**10:
        assert read_table(file, schema).num_rows == 64
        return
    with pytest.raises(DamagedFileError, match=r"row group 0 takes over 8,388,608 bytes decoded"):
        read_table(file, schema)


def test_a_list_that_expands_in_one_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 2**24)
    pq.write_table(pa.table({"text": [["A" * 2**20] * 100]}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(pa.ArrowInvalid, match="row group 0 takes over 16,777,216 bytes decoded"):
        next(open_local(tmp_path / "a.parquet").batches(0, ["text"]))


@pytest.mark.parametrize(
    ("written", "repeats"),
    [
        ({"compression": "none", "use_dictionary": False}, False),
        ({"compression": "zstd", "data_page_version": "2.0"}, True),
        ({"compression": "snappy", "write_page_checksum": True, "dictionary_pagesize_limit": 2000}, True),
        ({"use_dictionary": False, "column_encoding": {"s": "DELTA_BYTE_ARRAY", "l.list.element": "PLAIN"}}, True),
    ],
)
def test_pages_are_counted_as_the_writer_counts_them(written: dict[str, Any], repeats: bool, tmp_path: Path) -> None:
    texts = [f"text {number % 700}" for number in range(5000)]
    table = pa.table({"s": texts, "n": range(5000), "l": [[text, None] for text in texts]})
    pq.write_table(table, tmp_path / "a.parquet", data_page_size=4096, write_batch_size=100, **written)
    file = open_local(tmp_path / "a.parquet")
    pages = file._pages(0, ["s", "n", "l"])
    for chunk, found in pages:
        assert found.values == chunk.num_values
        assert 0.98 * chunk.total_uncompressed_size - 100 < found.size < chunk.total_uncompressed_size, "less headers"
    assert pages[0][1].repeats == repeats
    assert file.read(["s", "n", "l"]) == table
    assert file.read_row_group(0, ["s", "n", "l"]) == table


@pytest.mark.parametrize("byte", [0x00, 0x15, 0x1C, 0x99, 0xFF])
def test_a_damaged_header_of_a_page_is_refused(byte: int, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["A", "B"]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for at in range(4, 30):
        data = bytearray(whole)
        data[at] = byte
        try:
            table = parse_parquet(bytes(data), "a").read(["text"])
        except (pa.ArrowException, OSError):
            continue
        assert table.num_rows == 2
    with pytest.raises(pa.ArrowInvalid, match="the header of a page is damaged"):
        parse_parquet(whole[:4] + b"\xff" * 12 + whole[16:], "a").read(["text"])
