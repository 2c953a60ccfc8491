"""S3 clients, created from a URI's options and the usual AWS environment, and the part of boto3's interface in use."""

import functools
import os
import re
import threading
from typing import Any, NotRequired, Protocol, TypedDict
from urllib.parse import parse_qsl, urlsplit

from foldray.errors import UserError
from foldray.storage.uri import bare, bucket_and_key, is_s3, place

CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
"""Timeouts of one request. They are short so that a dead server is noticed soon; `outages.retrying` waits longer."""

THREADS = 16

_lock = threading.Lock()


class ObjectName(TypedDict):
    """The arguments that name an object in a request."""

    Bucket: str
    Key: str


class Body(Protocol):
    """The streamed body of a response."""

    def read(self) -> bytes: ...


class GetObjectResponse(TypedDict):
    """Response of GetObject; `ContentRange` only where a range was requested."""

    Body: Body
    ContentLength: int
    ContentRange: NotRequired[str]


class HeadObjectResponse(TypedDict):
    """Response of HeadObject."""

    ContentLength: int


class ListedObject(TypedDict):
    """One object of a listing."""

    Key: str
    Size: int


class ListedPrefix(TypedDict):
    """One folder of a listing."""

    Prefix: str


class ListObjectsResponse(TypedDict, total=False):
    """One page of a listing."""

    Contents: list[ListedObject]
    CommonPrefixes: list[ListedPrefix]
    IsTruncated: bool
    NextContinuationToken: str


class FailedDeletion(TypedDict, total=False):
    """One object that DeleteObjects could not delete."""

    Key: str
    Code: str
    Message: str


class DeleteObjectsResponse(TypedDict, total=False):
    """Response of DeleteObjects."""

    Errors: list[FailedDeletion]


class ClientExceptions(Protocol):
    """Exception classes of a client."""

    ClientError: type[Exception]


class S3Client(Protocol):
    """The requests of boto3's S3 client that storage sends; arguments as in boto3's documentation."""

    exceptions: ClientExceptions
    meta: Any
    """botocore's event hooks."""

    def get_object(self, *, Bucket: str, Key: str, Range: str = ...) -> GetObjectResponse: ...

    def head_object(self, *, Bucket: str, Key: str) -> HeadObjectResponse: ...

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str = ...) -> object: ...

    def upload_fileobj(self, Fileobj: object, Bucket: str, Key: str, Config: object = ...) -> None: ...

    def delete_object(self, *, Bucket: str, Key: str) -> object: ...

    def delete_objects(self, *, Bucket: str, Delete: object) -> DeleteObjectsResponse: ...

    def list_objects_v2(
        self, *, Bucket: str, Prefix: str, Delimiter: str = ..., MaxKeys: int = ..., ContinuationToken: str = ...
    ) -> ListObjectsResponse: ...


def settings(uri: str) -> tuple[str | None, str | None, bool]:
    """Endpoint URL, region and whether requests are anonymous, from the URI's options or else the environment.

    Raises:
        UserError: an option is unknown, or the endpoint is not a URL.
    """
    options = dict(parse_qsl(uri.partition("?")[2]))
    known = {"endpoint_override", "scheme", "region", "anonymous"}
    if unknown := sorted(options.keys() - known):
        raise UserError("storage", f"{bare(uri)} has unknown options {', '.join(unknown)}; use {sorted(known)}")
    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        shown = re.sub(r".*@", "", endpoint)
        raise UserError("storage", f"S3 endpoint '{shown}' is not a URL; set AWS_ENDPOINT_URL to http(s)://HOST:PORT")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    return endpoint, region, options.get("anonymous", "").lower() in ("true", "1")


def client_of(uri: str) -> S3Client:
    """Return the client for a URI's bucket; threads share it, processes do not."""
    with _lock:  # threads that start together must not create a client each
        return _create_client(place(uri), _environment_key())


def _environment_key() -> tuple[object, ...]:
    """Return what a cached client depends on besides its URI: the process (clients do not survive a fork) and AWS_*."""
    return os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))


@functools.lru_cache(maxsize=64)
def _create_client(place: str, _key: tuple[object, ...]) -> S3Client:
    import boto3.session
    from botocore import UNSIGNED  # type: ignore[import-untyped,unused-ignore]
    from botocore.config import Config  # type: ignore[import-untyped,unused-ignore]

    endpoint, region, anonymous = settings(place)
    session = boto3.session.Session()
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=2 * THREADS,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if endpoint else None,
        signature_version=UNSIGNED if anonymous else None,
    )
    region = region or session.region_name or "us-east-1"
    client: S3Client = session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    return client


def object_of(uri: str) -> ObjectName:
    """Return the arguments that name the URI's object in a request."""
    bucket, key = bucket_and_key(uri)
    return {"Bucket": bucket, "Key": key}


def endpoint_of(uri: str) -> str:
    """Name the server of a URI for messages, without credentials."""
    if not is_s3(uri):
        return uri.partition("://")[0]
    endpoint, region, _ = settings(uri)
    if not endpoint:
        return f"AWS ({region})" if region else "AWS"
    where = urlsplit(endpoint)
    return f"{where.scheme}://{where.netloc.rpartition('@')[2]}"


def store_of(uri: str) -> str:
    """Name the bucket of a URI and its server for messages."""
    return f"{bare(place(uri))} at {endpoint_of(uri)}" if is_s3(uri) else bare(place(uri))
