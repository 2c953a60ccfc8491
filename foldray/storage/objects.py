"""Objects of S3: the requests behind the verbs of `storage`, each retried while the store is away."""

import functools
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from foldray.storage.outages import answer_of, retrying
from foldray.storage.s3 import THREADS, client_of, object_of
from foldray.storage.uri import bucket_and_key

T = TypeVar("T")

MULTIPART_BYTES = 32 * 2**20


def _ask(uri: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """A request to S3, with retries."""
    return retrying(lambda: dict(getattr(client_of(uri), operation)(**arguments)), uri)


def pages(uri: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Pages of the listing below a prefix, each retried for itself."""
    bucket, key = bucket_and_key(uri)
    asked = {"Bucket": bucket, "Prefix": key and f"{key}/", **arguments}
    while True:
        page = _ask(uri, "list_objects_v2", **asked)
        yield page
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def files(uri: str, **arguments: Any) -> Iterator[tuple[str, int]]:
    """Files below a prefix with their bytes, by relative path. Empty "directory" objects are none."""
    key = bucket_and_key(uri)[1]
    skipped = len(key) + 1 if key else 0
    for page in pages(uri, **arguments):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry["Key"][skipped:], entry["Size"]


def in_threads(action: Callable[[str], T], items: list[str]) -> list[T]:
    if len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(action, items))


def size(uri: str) -> int | None:
    """Bytes of an object, None if it is not there; a GET of one byte, since a HEAD hides why the store refuses."""
    if not bucket_and_key(uri)[1]:
        return None
    try:
        part = read_part(uri, 0, 1)
    except FileNotFoundError:
        return None
    return part[1]


def read_part(uri: str, offset: int, length: int) -> tuple[bytes, int]:
    """A part of an object, and the bytes of the whole."""

    def ask() -> tuple[bytes, int]:
        client = client_of(uri)
        try:
            answer = client.get_object(**object_of(uri), Range=f"bytes={offset}-{offset + length - 1}")
        except client.exceptions.ClientError as error:
            if answer_of(error)[1] != 416:  # nothing there from offset on
                raise
            return b"", int(client.head_object(**object_of(uri))["ContentLength"])
        total = answer.get("ContentRange", "").rpartition("/")[2]
        data: bytes = answer["Body"].read()
        return data, int(total) if total.isdigit() else int(answer["ContentLength"])

    return retrying(ask, uri)


def read(uri: str) -> bytes:
    """A whole object. Raises FileNotFoundError."""
    return retrying(lambda: bytes(client_of(uri).get_object(**object_of(uri))["Body"].read()), uri)


def write(uri: str, data: bytes) -> None:
    """One PUT, or parts side by side: S3 shows neither before it is complete."""
    retrying(lambda: _put(uri, data), uri)


def create(uri: str, data: bytes) -> bool:
    """One conditional PUT: False where an object of that name is there already, written by somebody else."""

    def ask() -> bool:
        client = client_of(uri)
        try:
            client.put_object(**object_of(uri), Body=data, IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            if answer_of(error)[1] != 412:
                raise
            return read(uri) == data  # the answer to this very request may have been lost on the way
        return True

    return retrying(ask, uri)


def _put(uri: str, data: bytes) -> None:
    client = client_of(uri)
    if len(data) < MULTIPART_BYTES:
        client.put_object(**object_of(uri), Body=data)
        return
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(
        multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES // 2, max_concurrency=4
    )
    client.upload_fileobj(io.BytesIO(data), **object_of(uri), Config=parts)


def delete(uri: str) -> None:
    """Delete an object if it is there."""
    _ask(uri, "delete_object", **object_of(uri))


def delete_below(uri: str) -> None:
    """Delete everything below a prefix, empty "directory" objects too."""
    keys = [entry["Key"] for page in pages(uri) for entry in page.get("Contents", ())]
    for begin in range(0, len(keys), 1000):
        retrying(functools.partial(_delete, uri, keys[begin : begin + 1000]), uri)


def _delete(uri: str, keys: list[str]) -> None:
    client = client_of(uri)
    listed = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    answer = client.delete_objects(Bucket=bucket_and_key(uri)[0], Delete=listed)
    for failed in answer.get("Errors", ()):
        if failed.get("Code") != "NoSuchKey":
            raise client.exceptions.ClientError({"Error": failed}, "DeleteObjects")
