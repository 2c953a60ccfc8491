"""Files by URI: a plain folder or `s3://…`, through one set of verbs.

S3 endpoint, region and credentials come from the usual AWS environment, never from a spec. The verbs speak S3 through
boto3, because pyarrow's writer leaves empty "directory" objects, completes a half upload when it is closed by an
error, asks twice for every read and hides the server's reason behind HEAD; other schemes go through pyarrow.
A store that is away is waited for, `RETRY_SECONDS` long; what it refuses is one line, from `explain`.
"""

import contextlib
import errno
import functools
import io
import itertools
import json
import logging
import os
import random
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from foldray.errors import UserError

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""How long a store may be away before the job gives up; FOLDRAY_STORAGE_RETRY_SECONDS in the environment wins."""

LONGEST_PAUSE = 5.0
CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
"""Limits on one request, so that a dead server is noticed soon; the long waiting is `retrying`'s."""

THREADS = 16
MULTIPART_BYTES = 32 * 2**20
BLOCK = 2**18

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_away: set[str] = set()


def absolute(uri: str) -> str:
    """A URI or path as workers on any host of the run may use it: local paths become absolute."""
    if "://" in uri and not uri.startswith("file://"):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def is_local(uri: str) -> bool:
    """Whether the URI is a plain folder or file of this machine."""
    return "://" not in uri or uri.startswith("file://")


def is_s3(uri: str) -> bool:
    """Whether the URI is in a bucket."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Parts appended to a URI with single slashes; options after '?' stay at the end."""
    base, mark, options = uri.partition("?") if not is_local(uri) else (uri, "", "")
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)]) + mark + options


def filesystem(uri: str) -> tuple[Any, str]:
    """A pyarrow filesystem and the path inside it, for readers that need one: wrap what they do in `retrying`.

    Raises UserError for a URI no filesystem serves.
    """
    return _filesystem(_place(uri), _surroundings()), filesystem_path(uri)


def filesystem_path(uri: str) -> str:
    """The path of a URI inside its filesystem: keys as they are, since names may hold any character."""
    return absolute(uri) if is_local(uri) else uri.split("://", 1)[1].partition("?")[0]


def _place(uri: str) -> str:
    """What decides which filesystem serves a URI: nothing for local files, else scheme, bucket and options."""
    if is_local(uri):
        return ""
    scheme, _, rest = uri.partition("://")
    key, mark, options = rest.partition("?")
    return f"{scheme}://{key.split('/', 1)[0]}{mark}{options}"


def _surroundings() -> tuple[object, ...]:
    """What clients are made from beside the URI: changed credentials or a fork must not meet an old client."""
    return os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))


@functools.lru_cache(maxsize=64)
def _filesystem(place: str, _surroundings: tuple[object, ...]) -> Any:
    from pyarrow import fs

    if not place:
        return fs.LocalFileSystem()
    try:
        return _s3_filesystem(place) if is_s3(place) else fs.FileSystem.from_uri(place)[0]
    except UserError:
        raise
    except Exception as error:
        problem = f"not a readable location ({_one_line(error)}); use a folder or s3://bucket/prefix"
        raise UserError(place, problem) from None


def _s3_filesystem(place: str) -> Any:
    from pyarrow import fs

    endpoint, region, anonymous = _s3_settings(place)
    where = urlsplit(endpoint) if endpoint else None
    return fs.S3FileSystem(
        endpoint_override=where.netloc if where else None,
        scheme=where.scheme if where else "https",
        region=region or ("us-east-1" if where else fs.resolve_s3_region(_bucket_and_key(place)[0])),
        anonymous=anonymous,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=ANSWER_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _s3_settings(uri: str) -> tuple[str | None, str | None, bool]:
    """Endpoint URL, region and whether to go without credentials: the URI's options, else the environment."""
    options = dict(parse_qsl(uri.partition("?")[2]))
    known = {"endpoint_override", "scheme", "region", "anonymous"}
    if unknown := sorted(options.keys() - known):
        raise UserError("storage", f"{_bare(uri)} has unknown options {', '.join(unknown)}; there are {sorted(known)}")
    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        raise UserError(
            "storage", f"the S3 endpoint '{endpoint}' is no URL; set AWS_ENDPOINT_URL to http(s)://HOST:PORT"
        )
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    return endpoint, region, options.get("anonymous", "").lower() in ("true", "1")


def _client(uri: str) -> Any:
    with _lock:  # threads that begin together share one client
        return _s3_client(_place(uri), _surroundings())


@functools.lru_cache(maxsize=64)
def _s3_client(place: str, _surroundings: tuple[object, ...]) -> Any:
    import boto3.session
    from botocore import UNSIGNED  # type: ignore[import-untyped,unused-ignore]
    from botocore.config import Config  # type: ignore[import-untyped,unused-ignore]

    endpoint, region, anonymous = _s3_settings(place)
    session = boto3.session.Session()
    settings = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=2 * THREADS,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if endpoint else None,
        signature_version=UNSIGNED if anonymous else None,
    )
    region = region or session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=settings)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = filesystem_path(uri).partition("/")
    return bucket, key.strip("/")


def _object(uri: str) -> dict[str, str]:
    bucket, key = _bucket_and_key(uri)
    return {"Bucket": bucket, "Key": key}


def _bare(uri: str) -> str:
    return uri.partition("?")[0]


def retrying(action: Callable[[], T], uri: str) -> T:
    """What `action` returns; while the store of `uri` is away it is tried again, `RETRY_SECONDS` long.

    `action` must do no harm when it is done twice. Raises UserError for what the store refuses (see `explain`) and
    FileNotFoundError for a missing file.
    """
    if is_local(uri):
        return action()
    began, gives_up = time.monotonic(), 0.0
    for attempt in itertools.count():
        try:
            result = action()
        except Exception as error:
            now = time.monotonic()
            gives_up = gives_up or now + _retry_seconds()
            if not _is_transient(error) or now >= gives_up:
                _away.discard(_named(uri))
                raised = _translated(error, uri)
                raise raised from (None if raised is error else error)
            if attempt or now - began > CONNECT_SECONDS:  # a connection that was idle too long is no outage
                _say_away(error, uri)
            pause = min(LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.5, 1)
            time.sleep(min(pause, gives_up - now))
        else:
            if _away:
                _say_back(uri)
            return result
    raise AssertionError("unreachable")


def _retry_seconds() -> float:
    return float(os.environ.get("FOLDRAY_STORAGE_RETRY_SECONDS") or RETRY_SECONDS)


def _say_away(error: BaseException, uri: str) -> None:
    """Warn once for an outage, whichever thread meets it first."""
    store = _named(uri)
    with _lock:
        known = store in _away
        _away.add(store)
    if not known:
        reason = _scrubbed(_one_line(error))
        _log.warning("%s is away (%s); waiting up to %.0f s for it", store, reason, _retry_seconds())


def _say_back(uri: str) -> None:
    store = _named(uri)
    with _lock:
        known = store in _away
        _away.discard(store)
    if known:
        _log.warning("%s is back", store)


PASSING = {
    "networkconnection", "internalerror", "internalfailure", "serviceunavailable", "slowdown", "requesttimeout",
    "requesttimeoutexception", "throttling", "throttlingexception", "requestlimitexceeded", "toomanyrequests",
    "bandwidthlimitexceeded", "operationaborted", "incompletebody", "baddigest",
}  # fmt: skip
"""Answers of S3 that pass by themselves, in lower case without underscores."""

NETWORK = {
    "ConnectionError", "EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError",
    "ProxyConnectionError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError", "ProtocolError",
}  # fmt: skip
"""botocore's and urllib3's exceptions for a server that does not answer, or not to the end."""

GONE = {"nosuchkey", "404", "notfound", "resourcenotfound"}

RENEW = "renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
REFUSALS = {
    "nosuchbucket": "there is no bucket {bucket} at {endpoint}; create it, or mend its name or AWS_ENDPOINT_URL",
    "invalidbucketname": "{bucket} is no name a bucket can have; mend the URI {uri}",
    "invalidaccesskeyid": "{endpoint} does not know the access key for {bucket}; mend AWS_ACCESS_KEY_ID{token}",
    "signaturedoesnotmatch": "the secret key for {bucket} at {endpoint} is wrong; mend AWS_SECRET_ACCESS_KEY",
    "expiredtoken": "the credentials for {bucket} at {endpoint} have expired; " + RENEW,
    "invalidtoken": "{endpoint} refuses the session token for {bucket}; " + RENEW + ", or unset the last",
    "accessdenied": "{endpoint} denies access to {uri}; use credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE or a role) "
    "with the right to read, list, write and delete there",
    "wrongregion": "bucket {bucket} is in another region{region}; set AWS_REGION to it",
    "requesttimetooskewed": "the clock of this machine is too far from that of {endpoint}; set the clock",
    "nocredentials": "there are no credentials for {bucket} ({said}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE or a role, or append ?anonymous=true for a public bucket",
    "tls": "{endpoint} cannot be spoken to over TLS ({said}); mend http or https in AWS_ENDPOINT_URL, or AWS_CA_BUNDLE",
    "away": "{endpoint} does not answer ({said}); start it, or mend AWS_ENDPOINT_URL or the network",
}
"""What to say of an answer, by its code in lower case without underscores."""

ALIKE = {
    "expiredtokenexception": "expiredtoken",
    "tokenrefreshrequired": "expiredtoken",
    "unauthorizedssotokenerror": "expiredtoken",
    "ssotokenloaderror": "expiredtoken",
    "tokenretrievalerror": "expiredtoken",
    "invalidclienttokenid": "invalidaccesskeyid",
    "invalidsecurity": "invalidtoken",
    "invalidsignature": "signaturedoesnotmatch",
    "allaccessdisabled": "accessdenied",
    "forbidden": "accessdenied",
    "unauthorized": "accessdenied",
    "401": "accessdenied",
    "403": "accessdenied",
    "301": "wrongregion",
    "permanentredirect": "wrongregion",
    "authorizationheadermalformed": "wrongregion",
    "nocredentialserror": "nocredentials",
    "partialcredentialserror": "nocredentials",
    "credentialretrievalerror": "nocredentials",
    "profilenotfound": "nocredentials",
    "sslerror": "tls",
}


def explain(error: BaseException, uri: str) -> UserError | None:
    """One line for what a store refused or for one that is away, without any secret; None for other errors."""
    code, _ = _answer(error)
    code = "away" if _is_transient(error) else ALIKE.get(code, code)
    if isinstance(error, UserError) or not code or code in GONE:
        return None
    said = _scrubbed(_one_line(error))
    if code == "paramvalidationerror" and "bucket" in said.lower():
        code = "invalidbucketname"
    template = REFUSALS.get(code, "{endpoint} refused {uri} ({said}); check AWS_ENDPOINT_URL and AWS_REGION")
    region = re.search(r"(?:expecting|located in) '([\w-]+)'", said)
    return UserError(
        "storage",
        template.format(
            bucket=_bucket_and_key(uri)[0] or "''",
            endpoint=_endpoint(uri),
            uri=_bare(uri),
            said=said,
            region=f", {region[1]}" if region else "",
            token=" or unset AWS_SESSION_TOKEN" if os.environ.get("AWS_SESSION_TOKEN") else "",
        ),
    )


def _translated(error: Exception, uri: str) -> Exception:
    if _answer(error)[0] in GONE:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _bare(uri))
    return explain(error, uri) or error


def _answer(error: BaseException) -> tuple[str, int]:
    """Code (lower case, no underscores) and HTTP status a store answered with; '' and 0 for errors of other kinds."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:  # botocore's ClientError
        code = str(response["Error"].get("Code", "unknown"))
        return code.lower(), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3"):
        return type(error).__name__.lower(), 0
    text = str(error) if isinstance(error, OSError) else ""
    if not (found := re.search(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?", text)):
        return "", 0
    # pyarrow: codes it does not know stand in the message
    named = re.search(r"Unable to parse ExceptionName: (\w+)", text)
    status = int(found[2] or 0)
    code = named[1] if named else str(status) if status else found[1]
    return code.lower().replace("_", ""), status


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a while."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if any(kind.__name__ in NETWORK for kind in type(error).__mro__):
        return not re.search("WRONG_VERSION_NUMBER|CERTIFICATE", str(error))
    code, status = _answer(error)
    return code in PASSING or status == 429 or (status >= 500 and status != 501)


def _endpoint(uri: str) -> str:
    """The server of a URI as messages name it."""
    if not is_s3(uri):
        return uri.partition("://")[0]
    endpoint, region, _ = _s3_settings(uri)
    if not endpoint:
        return f"AWS ({region})" if region else "AWS"
    where = urlsplit(endpoint)
    return f"{where.scheme}://{where.netloc.rpartition('@')[2]}"


def _named(uri: str) -> str:
    return f"{_bare(_place(uri))} at {_endpoint(uri)}" if is_s3(uri) else _bare(_place(uri))


def _scrubbed(text: str) -> str:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"({name})")
    return text


def _ask(uri: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """A request to S3, with retries."""
    return retrying(lambda: dict(getattr(_client(uri), operation)(**arguments)), uri)


def _pages(uri: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Pages of the listing below a prefix, each retried for itself."""
    bucket, key = _bucket_and_key(uri)
    asked = {"Bucket": bucket, "Prefix": key and f"{key}/", **arguments}
    while True:
        page = _ask(uri, "list_objects_v2", **asked)
        yield page
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _objects(uri: str, **arguments: Any) -> Iterator[tuple[str, int]]:
    """Files below a prefix with their bytes, by relative path. Empty "directory" objects are none."""
    key = _bucket_and_key(uri)[1]
    skipped = len(key) + 1 if key else 0
    for page in _pages(uri, **arguments):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry["Key"][skipped:], entry["Size"]


def _infos(uri: str, recursive: bool = False) -> list[Any]:
    """What pyarrow lists in a folder, nothing if it is not there."""
    from pyarrow import fs

    found, path = filesystem(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return list(retrying(lambda: found.get_file_info(selector), uri))


def _type(uri: str) -> Any:
    found, path = filesystem(uri)
    return retrying(lambda: found.get_file_info(path).type, uri)


def exists(uri: str) -> bool:
    """Whether a file is there. Empty 'directories' of an object store do not count."""
    from pyarrow import fs

    return _s3_size(uri) is not None if is_s3(uri) else bool(_type(uri) == fs.FileType.File)


def is_folder(uri: str) -> bool:
    """Whether a folder (in an object store: a prefix with files under it) is there."""
    from pyarrow import fs

    if is_s3(uri):
        return next(_objects(uri, MaxKeys=10), None) is not None
    return bool(_type(uri) == fs.FileType.Directory)


def list_files(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty if it is not there."""
    from pyarrow import fs

    if is_s3(uri):
        return sorted(name for name, _ in _objects(uri, Delimiter="/"))
    return sorted(info.base_name for info in _infos(uri) if info.type == fs.FileType.File)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly under a folder, sorted; empty if it is not there."""
    from pyarrow import fs

    if not is_s3(uri):
        return sorted(info.base_name for info in _infos(uri) if info.type == fs.FileType.Directory)
    pages = _pages(uri, Delimiter="/")
    prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
    names = sorted({prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes})
    kept = _in_threads(lambda name: is_folder(join(uri, name)), names)  # a prefix may hold nothing but a marker
    return [name for name, keep in zip(names, kept, strict=True) if keep]


def _in_threads(action: Callable[[str], T], items: list[str]) -> list[T]:
    if len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(action, items))


def file_sizes(uris: Iterable[str]) -> list[int | None]:
    """Bytes of each file, None where it is missing; requests to a bucket go out many at once."""
    from pyarrow import fs

    wanted = list(uris)
    remote = [uri for uri in wanted if is_s3(uri)]
    sizes: dict[str, int | None] = dict(zip(remote, _in_threads(_s3_size, remote), strict=True))
    others = [uri for uri in wanted if not is_s3(uri)]
    for place in {_place(uri) for uri in others}:
        members = [uri for uri in others if _place(uri) == place]
        found = filesystem(members[0])[0]
        paths = [filesystem_path(uri) for uri in members]
        infos = retrying(functools.partial(found.get_file_info, paths), members[0])
        sizes.update(
            (uri, info.size if info.type == fs.FileType.File else None)
            for uri, info in zip(members, infos, strict=True)
        )
    return [sizes[uri] for uri in wanted]


def _s3_size(uri: str) -> int | None:
    """Bytes of an object, None if it is not there; a GET of one byte, since a HEAD hides why the store refuses."""
    if not _bucket_and_key(uri)[1]:
        return None
    try:
        part = _s3_range(uri, 0, 1)
    except FileNotFoundError:
        return None
    return part[1]


def _s3_range(uri: str, offset: int, length: int) -> tuple[bytes, int]:
    """A part of an object, and the bytes of the whole."""

    def ask() -> tuple[bytes, int]:
        client = _client(uri)
        try:
            answer = client.get_object(**_object(uri), Range=f"bytes={offset}-{offset + length - 1}")
        except client.exceptions.ClientError as error:
            if _answer(error)[1] != 416:  # nothing there from offset on
                raise
            return b"", int(client.head_object(**_object(uri))["ContentLength"])
        total = answer.get("ContentRange", "").rpartition("/")[2]
        data: bytes = answer["Body"].read()
        return data, int(total) if total.isdigit() else int(answer["ContentLength"])

    return retrying(ask, uri)


def list_tree(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path relative to it; empty if it is not there."""
    from pyarrow import fs

    if is_s3(uri):
        return dict(sorted(_objects(uri)))
    path = filesystem_path(uri)
    infos = (info for info in _infos(uri, recursive=True) if info.type == fs.FileType.File)
    return dict(sorted((info.path.removeprefix(path).lstrip("/"), info.size) for info in infos))


def open_file(uri: str) -> io.BufferedReader:
    """A file opened for reading at any place, in blocks of 256 KiB. Raises FileNotFoundError."""
    if is_local(uri):
        return open(filesystem_path(uri), "rb")
    size = file_sizes([uri])[0]
    if size is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _bare(uri))
    return io.BufferedReader(_RemoteFile(uri, size), BLOCK)


class _RemoteFile(io.RawIOBase):
    """A file of a store by range reads, each with retries: it outlives an outage."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri = uri
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = read_range(self._uri, self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on; fewer where it ends before."""
    if length <= 0:
        return b""
    if is_local(uri):
        with open(filesystem_path(uri), "rb") as file:
            file.seek(offset)
            return file.read(length)
    if is_s3(uri):
        return _s3_range(uri, offset, length)[0]
    found, path = filesystem(uri)

    def read() -> bytes:
        with found.open_input_file(path) as file:
            return bytes(file.read_at(length, offset))

    return retrying(read, uri)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    if is_s3(uri):
        return retrying(lambda: bytes(_client(uri).get_object(**_object(uri))["Body"].read()), uri)
    found, path = filesystem(uri)

    def read() -> bytes:
        with found.open_input_stream(path) as stream:
            return bytes(stream.read())

    return retrying(read, uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    if is_s3(uri):
        retrying(lambda: _s3_write(uri, data), uri)
    elif is_local(uri):
        _local_write(Path(filesystem_path(uri)), data)
    else:
        found, path = filesystem(uri)

        def write() -> None:
            with found.open_output_stream(path) as stream:
                stream.write(data)

        retrying(write, uri)


def _s3_write(uri: str, data: bytes) -> None:
    """One PUT, or parts side by side: S3 shows neither before it is complete."""
    client = _client(uri)
    if len(data) < MULTIPART_BYTES:
        client.put_object(**_object(uri), Body=data)
        return
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(
        multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES // 2, max_concurrency=4
    )
    client.upload_fileobj(io.BytesIO(data), **_object(uri), Config=parts)


def _local_write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    """A JSON file's value."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """A value as an indented JSON file, written whole."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def remove(uri: str) -> None:
    """Delete one file if it is there."""
    if is_s3(uri):
        _ask(uri, "delete_object", **_object(uri))
        return
    found, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: found.delete_file(path), uri)


def remove_folder(uri: str) -> None:
    """Delete a folder and everything in it, if it is there."""
    if is_s3(uri):
        keys = [entry["Key"] for page in _pages(uri) for entry in page.get("Contents", ())]
        for begin in range(0, len(keys), 1000):
            retrying(functools.partial(_s3_delete, uri, keys[begin : begin + 1000]), uri)
        return
    found, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: found.delete_dir(path), uri)


def _s3_delete(uri: str, keys: list[str]) -> None:
    client = _client(uri)
    listed = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    answer = client.delete_objects(Bucket=_bucket_and_key(uri)[0], Delete=listed)
    for failed in answer.get("Errors", ()):
        if failed.get("Code") != "NoSuchKey":
            raise client.exceptions.ClientError({"Error": failed}, "DeleteObjects")


def upload(folder: Path, uri: str, last: str | None = None) -> None:
    """Copy every file under a local folder to a URI; the file `last` after all others, as a mark of the whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path.name == last):
        write_bytes(join(uri, file.relative_to(folder).as_posix()), file.read_bytes())


def download(uri: str, folder: Path) -> None:
    """Copy every file directly under a URI to a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_files(uri):
        (folder / name).write_bytes(read_bytes(join(uri, name)))


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A local view of a folder: itself, or a temporary copy of a bucket's files."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as copied:
        download(uri, Path(copied))
        yield Path(copied)


def check_writable(uri: str, field: str) -> None:
    """Write and delete a probe. Raises UserError naming `field` when the location refuses."""
    probe = join(uri, f".foldray-probe-{os.getpid()}")
    try:
        write_bytes(probe, b"probe")
        remove(probe)
    except UserError as error:
        raise UserError(field, error.problem) from None
    except Exception as error:
        raise UserError(
            field, f"cannot write to {uri} ({_one_line(error)}); choose another location or mend its rights"
        ) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
