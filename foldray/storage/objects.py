"""S3 objects: the requests behind `foldray.storage`, each retried while the store is unavailable."""

import functools
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NotRequired, TypedDict, TypeVar

from foldray.storage.outages import retrying
from foldray.storage.refusals import error_code
from foldray.storage.s3 import THREADS, ListObjectsResponse, client_of, object_of
from foldray.storage.uri import bucket_and_key

T = TypeVar("T")

DELETE_SIZE = 1000
"""Objects per DeleteObjects request; S3's maximum."""

MULTIPART_BYTES = 32 * 2**20
"""Size from which objects are uploaded in parts."""


class _ListRequest(TypedDict):
    Bucket: str
    Prefix: str
    Delimiter: NotRequired[str]
    MaxKeys: NotRequired[int]
    ContinuationToken: NotRequired[str]


def pages(uri: str, delimiter: str = "", page_size: int | None = None) -> Iterator[ListObjectsResponse]:
    """Yield the pages of the listing below a prefix, each with its own retries.

    Args:
        uri: Folder to list.
        delimiter: "/" lists only what is directly in the folder; "" everything below it.
        page_size: Objects per page; None for the store's default, 1,000 on S3.
    """
    bucket, key = bucket_and_key(uri)
    request: _ListRequest = {"Bucket": bucket, "Prefix": key and f"{key}/"}
    if delimiter:
        request["Delimiter"] = delimiter
    if page_size:
        request["MaxKeys"] = page_size
    while True:
        page = retrying(lambda: client_of(uri).list_objects_v2(**request), uri)
        yield page
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def files(uri: str, delimiter: str = "", page_size: int | None = None) -> Iterator[tuple[str, int]]:
    """Yield relative path and bytes of each file below a prefix; empty "directory" objects are skipped."""
    key = bucket_and_key(uri)[1]
    skipped = len(key) + 1 if key else 0
    for page in pages(uri, delimiter, page_size):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry["Key"][skipped:], entry["Size"]


def in_threads(action: Callable[[str], T], items: list[str]) -> list[T]:
    """Map `action` over the items in parallel; results in the order of the items."""
    if len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(action, items))


def size(uri: str) -> int | None:
    """Return the bytes of an object, None if it does not exist.

    It reads one byte instead of sending a HEAD request, whose response gives no reason for a refusal.
    """
    if not bucket_and_key(uri)[1]:
        return None
    try:
        part = read_part(uri, 0, 1)
    except FileNotFoundError:
        return None
    return part[1]


def read_part(uri: str, offset: int, length: int) -> tuple[bytes, int]:
    """Return up to `length` bytes of an object from `offset`, and the bytes of the whole object."""

    def get() -> tuple[bytes, int]:
        client = client_of(uri)
        try:
            response = client.get_object(**object_of(uri), Range=f"bytes={offset}-{offset + length - 1}")
        except client.exceptions.ClientError as error:
            if error_code(error)[1] != 416:  # `offset` is at or behind the end
                raise
            return b"", client.head_object(**object_of(uri))["ContentLength"]
        total = response.get("ContentRange", "").rpartition("/")[2]
        data = response["Body"].read()
        return data, int(total) if total.isdigit() else response["ContentLength"]

    return retrying(get, uri)


def read(uri: str) -> bytes:
    """Return a whole object. Raises FileNotFoundError."""
    return retrying(lambda: client_of(uri).get_object(**object_of(uri))["Body"].read(), uri)


def write(uri: str, data: bytes) -> None:
    """Write an object by one PUT or a multipart upload; S3 shows it only when it is complete."""
    retrying(lambda: _put(uri, data), uri)


def create(uri: str, data: bytes) -> bool:
    """Write an object by a conditional PUT; False if another writer has already created it."""

    def put() -> bool:
        client = client_of(uri)
        try:
            client.put_object(**object_of(uri), Body=data, IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            if error_code(error)[1] != 412:
                raise
            return read(uri) == data  # an earlier try of ours may have succeeded, its response lost
        return True

    return retrying(put, uri)


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
    """Delete an object if it exists."""
    retrying(lambda: client_of(uri).delete_object(**object_of(uri)), uri)


def delete_below(uri: str) -> None:
    """Delete every object below a prefix, empty "directory" objects included."""
    keys = [entry["Key"] for page in pages(uri) for entry in page.get("Contents", ())]
    for begin in range(0, len(keys), DELETE_SIZE):
        retrying(functools.partial(_delete, uri, keys[begin : begin + DELETE_SIZE]), uri)


def _delete(uri: str, keys: list[str]) -> None:
    client = client_of(uri)
    request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    response = client.delete_objects(Bucket=bucket_and_key(uri)[0], Delete=request)
    for failed in response.get("Errors", ()):
        if failed.get("Code") != "NoSuchKey":
            raise client.exceptions.ClientError({"Error": failed}, "DeleteObjects")
