"""`foldray.storage` on a real S3 server: objects it leaves, messages for refusals, and retries during outages."""

import http.server
import io
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foldray import storage
from foldray.errors import UserError
from foldray.storage import objects, outages, s3

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.s3_server"]
BUCKET = "foldray-tests"

OPERATIONS: dict[str, Callable[[str], Any]] = {
    "exists": storage.exists,
    "is_folder": storage.is_folder,
    "list_files": storage.list_files,
    "list_folders": storage.list_folders,
    "list_tree": storage.list_tree,
    "file_sizes": lambda uri: storage.file_sizes([uri]),
    "open_file": storage.open_file,
    "read_range": lambda uri: storage.read_range(uri, 0, 1),
    "read_bytes": storage.read_bytes,
    "write_bytes": lambda uri: storage.write_bytes(uri, b"x"),
    "remove": storage.remove,
    "remove_folder": storage.remove_folder,
}


def key(uri: str) -> str:
    return uri.removeprefix(f"s3://{BUCKET}/")


NAMES = ["a.txt", "deep/er/b c+d%20.txt", "deep/\u00fc#1.txt", "empty"]


@pytest.fixture
def filled(s3_server: "S3Server", s3_store: str) -> str:
    """A store with four files, one of them empty, of names that have to be quoted."""
    for name in NAMES:
        storage.write_bytes(storage.join(s3_store, name), name.encode() if name != "empty" else b"")
    assert s3_server.keys(key(s3_store)) == sorted(key(storage.join(s3_store, name)) for name in NAMES)
    return s3_store


def test_files_and_folders_are_listed(filled: str) -> None:
    for name, is_file, is_folder in (
        ("a.txt", True, False), ("empty", True, False), ("deep", False, True), ("a", False, False),
        ("dee", False, False),
    ):  # fmt: skip
        uri = storage.join(filled, name)
        assert (storage.exists(uri), storage.is_folder(uri)) == (is_file, is_folder), name
    assert storage.is_folder(filled)
    assert storage.list_files(filled) == ["a.txt", "empty"]
    assert storage.list_folders(filled) == ["deep"]
    assert storage.list_folders(storage.join(filled, "deep")) == ["er"]
    assert storage.list_tree(filled) == {name: 0 if name == "empty" else len(name.encode()) for name in NAMES}
    uris = [storage.join(filled, name) for name in [*NAMES, "missing"]]
    assert storage.file_sizes(uris) == [5, 20, 13, 0, None]


def test_files_are_read_whole_and_in_part_and_overwritten(filled: str) -> None:
    for name in NAMES[:3]:
        assert storage.read_bytes(storage.join(filled, name)) == name.encode()
    text, empty = storage.join(filled, "a.txt"), storage.join(filled, "empty")
    assert storage.read_bytes(empty) == b""
    assert [storage.read_range(text, *part) for part in ((2, 2), (3, 99), (99, 9))] == [b"tx", b"xt", b""]
    assert storage.read_range(empty, 0, 9) == b""
    storage.write_bytes(text, b"new")
    assert storage.read_bytes(text) == b"new"


def test_removing_leaves_no_key(s3_server: "S3Server", filled: str) -> None:
    storage.remove(storage.join(filled, "a.txt"))
    storage.remove(storage.join(filled, "a.txt"))
    storage.remove(storage.join(filled, "deep", "er", "b c+d%20.txt"))
    left = ["deep/\u00fc#1.txt", "empty"]
    assert s3_server.keys(key(filled)) == [key(storage.join(filled, name)) for name in left]
    storage.remove_folder(storage.join(filled, "deep"))
    storage.remove_folder(storage.join(filled, "nowhere"))
    assert s3_server.keys(key(filled)) == [key(storage.join(filled, "empty"))]
    storage.check_writable(filled, "storage.root")
    storage.remove_folder(filled)
    assert s3_server.keys(key(filled)) == []
    assert not storage.is_folder(filled)


def test_missing_files_and_folders(s3_store: str) -> None:
    nowhere = storage.join(s3_store, "nowhere")
    assert not storage.exists(nowhere)
    assert not storage.is_folder(nowhere)
    assert storage.list_files(nowhere) == storage.list_folders(nowhere) == []
    assert storage.list_tree(nowhere) == {}
    for operation in (storage.read_bytes, storage.open_file, lambda uri: storage.read_range(uri, 0, 1)):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            operation(nowhere)


def test_empty_directory_objects_are_ignored(s3_server: "S3Server", s3_store: str) -> None:
    client, prefix = s3_server.client(), key(s3_store)
    for marker in (f"{prefix}/hollow/", f"{prefix}/hollow/deeper/", f"{prefix}/full/"):
        client.put_object(Bucket=BUCKET, Key=marker, Body=b"")
    storage.write_bytes(storage.join(s3_store, "full", "file"), b"1")
    hollow = storage.join(s3_store, "hollow")
    assert not storage.exists(hollow)
    assert not storage.is_folder(hollow)
    assert storage.list_files(hollow) == storage.list_folders(hollow) == storage.list_files(s3_store) == []
    assert storage.list_folders(s3_store) == ["full"]
    assert storage.list_tree(s3_store) == {"full/file": 1}
    storage.remove_folder(s3_store)
    assert s3_server.keys(prefix) == []


def test_listings_of_many_pages_are_complete(s3_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:02}" for number in range(25)]
    for name in names:
        storage.write_bytes(storage.join(s3_store, name), b"1")
    whole = objects.pages
    monkeypatch.setattr(objects, "pages", lambda uri, delimiter="", _size=None: whole(uri, delimiter, 10))
    assert storage.list_files(s3_store) == names
    assert list(storage.list_tree(s3_store)) == names
    storage.remove_folder(s3_store)
    assert storage.list_files(s3_store) == []


@pytest.mark.main
def test_multipart_upload_is_complete(s3_server: "S3Server", s3_store: str) -> None:
    data = random.Random(0).randbytes(60 * 2**20)
    storage.write_bytes(s3_store, data)
    assert storage.read_bytes(s3_store) == data
    assert storage.read_range(s3_store, 31 * 2**20, 2**21) == data[31 * 2**20 : 33 * 2**20]
    assert s3_server.keys(key(s3_store)) == [key(s3_store)]
    storage.remove(s3_store)


def test_a_writer_killed_during_an_upload_leaves_the_old_file(s3_server: "S3Server", s3_store: str) -> None:
    kept, fresh = storage.join(s3_store, "kept"), storage.join(s3_store, "fresh")
    storage.write_bytes(kept, b"old")
    code = (
        "import sys; from foldray import storage; data = bytes(200 * 2**20); storage.exists(sys.argv[1])\n"
        "for uri in sys.argv[1:]: print('go', flush=True); storage.write_bytes(uri, data)"
    )
    client = s3_server.client()
    for uri in (kept, fresh):
        writer = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE)
        assert writer.stdout
        assert writer.stdout.readline() == b"go\n"
        begun: list[Any] = []
        while not begun and writer.poll() is None:
            begun = client.list_multipart_uploads(Bucket=BUCKET, Prefix=key(uri)).get("Uploads", [])
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        assert begun
        writer.stdout.close()
    assert storage.read_bytes(kept) == b"old"
    assert not storage.exists(fresh)
    assert storage.list_tree(s3_store) == {"kept": 3}


def test_a_missing_bucket_is_reported_and_is_not_a_missing_file(s3_server: "S3Server", s3_store: str) -> None:  # noqa: ARG001
    for name, operation in OPERATIONS.items():
        with pytest.raises(UserError) as caught:
            operation("s3://no-such-bucket/store/x")
        expected = f"storage: bucket no-such-bucket not found at {s3_server.endpoint}; create it, or "
        assert str(caught.value).startswith(expected), name


REFUSALS = [
    ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, "does not know the access key for {bucket}; fix AWS_ACCESS_KEY_ID"),
    ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "the secret key for {bucket} at {endpoint} is wrong; fix AWS_SECRET"),
    ({"AWS_SESSION_TOKEN": "stale-token"}, "fix AWS_ACCESS_KEY_ID or unset AWS_SESSION_TOKEN"),
    ({"AWS_ACCESS_KEY_ID": ""}, "no credentials for {bucket} (Unable to locate credentials); set AWS_ACCESS"),
    ({"AWS_SECRET_ACCESS_KEY": ""}, "missing: AWS_SECRET_ACCESS_KEY); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        {"AWS_PROFILE": "nobody"},
        "no credentials for {bucket} (The config profile (nobody) could not be found",
    ),
    ({"AWS_ENDPOINT_URL": "127.0.0.1:9"}, "S3 endpoint '127.0.0.1:9' is not a URL; set AWS_ENDPOINT_URL"),
]


@pytest.mark.main
@pytest.mark.parametrize(("changed", "expected"), REFUSALS)
@pytest.mark.parametrize("operation", ["exists", "write_bytes", "list_files"])
def test_wrong_credentials_are_reported_in_one_line(
    operation: str,
    changed: dict[str, str],
    expected: str,
    s3_server: "S3Server",
    s3_store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage.exists(s3_store)  # a client with the right keys exists already
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    for name, value in changed.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    pauses: list[float] = []
    monkeypatch.setattr(outages, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    with pytest.raises(UserError) as caught:
        OPERATIONS[operation](s3_store)
    assert pauses == []  # not retried
    message = str(caught.value)
    assert message.startswith("storage: ")
    assert expected.format(bucket=BUCKET, endpoint=s3_server.endpoint) in message
    assert not any(hidden in message for hidden in (secret, "wrong-secret", "stale-token", "\n"))


def test_read_only_credentials_are_reported(
    s3_server: "S3Server", s3_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = storage.join(s3_store, "file")
    storage.write_bytes(file, b"1")
    for name, value in s3_server.read_only_environment.items():
        monkeypatch.setenv(name, value)
    assert storage.read_bytes(file) == b"1"
    assert storage.list_tree(s3_store) == {"file": 1}
    for operation in ("write_bytes", "remove"):
        with pytest.raises(UserError, match=rf"storage: {s3_server.endpoint} denies access to {file}; use credentials"):
            OPERATIONS[operation](file)
    with pytest.raises(UserError, match=r"denies access to .*; use credentials"):
        storage.remove_folder(s3_store)
    with pytest.raises(UserError, match=r"storage.root: .* denies access"):
        storage.check_writable(s3_store, "storage.root")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="denies access"):  # sent without credentials, refused by the server
        storage.exists(f"{file}?anonymous=true")


@pytest.mark.parametrize("bucket", ["Not_A_Bucket!", "x"])
def test_invalid_bucket_names_are_reported(bucket: str, s3_store: str) -> None:  # noqa: ARG001
    with pytest.raises(UserError, match=r"^storage: .* is not a valid bucket name; fix the URI s3://"):
        storage.write_bytes(f"s3://{bucket}/store/x", b"")


def test_endpoint_and_region_from_the_uri(
    s3_server: "S3Server", s3_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = s3_server.endpoint.removeprefix("http://")
    uri = f"{s3_store}?endpoint_override={host}&scheme=http&region=us-east-1"
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    file = storage.join(uri, "a", "file")
    storage.write_bytes(file, b"1")
    assert storage.list_tree(uri) == {"a/file": 1}
    assert storage.list_folders(uri) == ["a"]
    assert storage.read_bytes(file) == b"1"
    with pytest.raises(UserError, match="unknown options colour"):
        storage.exists(f"{s3_store}?colour=blue")


def test_a_refused_connection_is_retried_then_reported(
    s3_store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("FOLDRAY_STORAGE_RETRY_SECONDS", "1000")
    slept = [0.0]
    monkeypatch.setattr(outages, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    with pytest.raises(UserError, match=r"storage: http://127.0.0.1:9 is unavailable \(.*\); start it, or fix AWS_E"):
        storage.read_bytes(s3_store)
    assert sum(slept) == pytest.approx(1000)
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        f"s3://{BUCKET} at http://127.0.0.1:9 is unavailable"
    ]


@contextmanager
def outage(server: "S3Server", seconds: float) -> Iterator[threading.Thread]:
    """Kill the server now and restart it some seconds later."""
    server.kill()

    def restart() -> None:
        time.sleep(seconds)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@pytest.mark.main
def test_two_hundred_writes_and_reads_survive_an_outage(
    s3_server: "S3Server", s3_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Semaphore(0)

    def write_and_read(number: int) -> bytes:
        uri = storage.join(s3_store, f"{number:03}")
        storage.write_bytes(uri, b"%d" % number * 1000)
        done.release()
        return storage.read_bytes(uri)

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(write_and_read, number) for number in range(200)]
        for _ in range(50):
            done.acquire()
        with outage(s3_server, 5):
            assert not results[-1].done()
        values = [result.result() for result in results]
    assert values == [b"%d" % number * 1000 for number in range(200)]
    assert storage.list_tree(s3_store) == {f"{number:03}": 1000 * len(str(number)) for number in range(200)}
    assert s3_server.keys(key(s3_store)) == [f"{key(s3_store)}/{number:03}" for number in range(200)]
    messages = [record.message for record in caplog.records if record.name == "foldray.storage"]
    states = [message.split(" (")[0].rsplit(" is ", 1)[1] for message in messages]
    outage_states = ["unavailable", "available again"]
    assert states in (outage_states, outage_states * 2)  # a server that has just started may fail once more
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.name == "foldray.storage")


@pytest.mark.main
def test_every_operation_waits_for_the_end_of_an_outage(s3_server: "S3Server", s3_store: str) -> None:
    data, big, tree = bytes(range(256)) * 4, storage.join(s3_store, "tree", "big"), storage.join(s3_store, "tree")
    storage.write_bytes(big, data)
    for name in ("one", "gone/file"):
        storage.write_bytes(storage.join(s3_store, name), b"1")
    operations: list[tuple[Callable[[], Any], Any]] = [
        (lambda: storage.exists(big), True),
        (lambda: storage.is_folder(tree), True),
        (lambda: storage.list_files(tree), ["big"]),
        (lambda: storage.list_folders(tree), []),
        (lambda: storage.file_sizes([big]), [len(data)]),
        (lambda: storage.list_tree(tree), {"big": len(data)}),
        (lambda: storage.read_range(big, 5, 3), data[5:8]),
        (lambda: storage.remove(storage.join(s3_store, "one")), None),
        (lambda: storage.remove_folder(storage.join(s3_store, "gone")), None),
        (lambda: storage.write_bytes(storage.join(s3_store, "large"), bytes(40 * 2**20)), None),
    ]
    with ThreadPoolExecutor(len(operations)) as pool, outage(s3_server, 2):
        waiting = [pool.submit(operation) for operation, _ in operations]
    assert [each.result() for each in waiting] == [expected for _, expected in operations]
    assert sorted(storage.list_tree(s3_store)) == ["large", "tree/big"]


@pytest.mark.main
def test_open_files_survive_an_outage(s3_server: "S3Server", s3_store: str) -> None:
    data, big, table = random.Random(1).randbytes(4 * 2**20), f"{s3_store}/big", f"{s3_store}/rows.parquet"
    storage.write_bytes(big, data)
    parquet = io.BytesIO()
    pq.write_table(pa.table({"n": list(range(1000))}), parquet, row_group_size=100)
    storage.write_bytes(table, parquet.getvalue())
    rows = pq.ParquetFile(storage.open_file(table))
    assert rows.read_row_group(1)["n"].to_pylist() == list(range(100, 200))
    with ThreadPoolExecutor(1) as pool, storage.open_file(big) as file:
        parts = [file.read(100_000)]
        with outage(s3_server, 2):
            group = pool.submit(lambda: rows.read_row_group(7)["n"].to_pylist())
            while part := file.read(100_000):
                parts.append(part)
        assert b"".join(parts) == data
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert group.result() == list(range(700, 800))


@pytest.mark.main
def test_a_hanging_server_times_out_and_is_retried(
    s3_server: "S3Server", s3_store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(s3, "ANSWER_SECONDS", 1)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")  # a client of its own, with this timeout
    storage.write_bytes(s3_store, b"1")
    s3_server.pause()
    with ThreadPoolExecutor(1) as pool:
        try:
            read = pool.submit(storage.read_bytes, s3_store)
            time.sleep(3.5)
            assert "is unavailable (Read timeout" in caplog.text
        finally:
            s3_server.resume()
        assert read.result() == b"1"


@contextmanager
def refusing_server(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, times: int, message: str = "no"
) -> Iterator[list[str]]:
    """An S3 server with errors that SeaweedFS never returns: refuses `times` requests, then serves two bytes."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            refused = len(requests) <= times
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if refused else b"ok"
            self.send_response(status if refused else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            yield requests
        finally:
            server.shutdown()


@pytest.mark.main
@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (500, "InternalError"), (502, "BadGateway"), (429, "TooManyRequests"), (400, "RequestTimeout")],
)
def test_transient_errors_are_retried(status: int, code: str, s3_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_server(monkeypatch, status, code, times=2) as requests:
        assert storage.read_bytes(s3_store) == b"ok"
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "ExpiredToken", "have expired; renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"),
        (400, "InvalidToken", "rejects the session token for"),
        (301, "PermanentRedirect", f"bucket {BUCKET} is in another region; set AWS_REGION to it"),
        (400, "AuthorizationHeaderMalformed", f"bucket {BUCKET} is in another region, eu-west-9; set AWS_REGION to it"),
        (403, "RequestTimeTooSkewed", "this machine's clock differs too much from"),
        (501, "NotImplemented", "refused s3://"),
    ],
)
def test_permanent_errors_are_reported_without_retries(
    status: int, code: str, expected: str, s3_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "the region 'us-east-1' is wrong; expecting 'eu-west-9'" if "Malformed" in code else "no"
    server = refusing_server(monkeypatch, status, code, times=99, message=message)
    with server as requests, pytest.raises(UserError) as caught:
        storage.read_bytes(s3_store)
    assert expected in caught.value.problem
    assert len(requests) <= 3  # botocore itself queries the bucket's region


def test_a_forked_process_creates_its_own_client(s3_store: str) -> None:
    storage.write_bytes(s3_store, b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if storage.read_bytes(s3_store) == b"1" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read_bytes(s3_store) == b"1"
