"""Clients of S3, made from a URI's options and the usual AWS environment; no setting is anywhere else."""

import functools
import os
import re
import threading
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from foldray.errors import UserError
from foldray.storage.uri import bare, bucket_and_key, is_s3, place

CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
"""Limits on one request, so that a dead server is noticed soon; the long waiting is `retrying`'s."""

THREADS = 16

_lock = threading.Lock()


def settings(uri: str) -> tuple[str | None, str | None, bool]:
    """Endpoint URL, region and whether to go without credentials: the URI's options, else the environment."""
    options = dict(parse_qsl(uri.partition("?")[2]))
    known = {"endpoint_override", "scheme", "region", "anonymous"}
    if unknown := sorted(options.keys() - known):
        raise UserError("storage", f"{bare(uri)} has unknown options {', '.join(unknown)}; there are {sorted(known)}")
    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        shown = re.sub(r".*@", "", endpoint)
        raise UserError("storage", f"the S3 endpoint '{shown}' is no URL; set AWS_ENDPOINT_URL to http(s)://HOST:PORT")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    return endpoint, region, options.get("anonymous", "").lower() in ("true", "1")


def client_of(uri: str) -> Any:
    with _lock:  # threads that begin together share one client
        return _make_client(place(uri), surroundings())


def surroundings() -> tuple[object, ...]:
    """What clients are made from beside the URI: changed credentials or a fork must not meet an old client."""
    return os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))


@functools.lru_cache(maxsize=64)
def _make_client(place: str, _surroundings: tuple[object, ...]) -> Any:
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
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def object_of(uri: str) -> dict[str, str]:
    bucket, key = bucket_and_key(uri)
    return {"Bucket": bucket, "Key": key}


def endpoint_of(uri: str) -> str:
    """The server of a URI as messages name it."""
    if not is_s3(uri):
        return uri.partition("://")[0]
    endpoint, region, _ = settings(uri)
    if not endpoint:
        return f"AWS ({region})" if region else "AWS"
    where = urlsplit(endpoint)
    return f"{where.scheme}://{where.netloc.rpartition('@')[2]}"


def store_of(uri: str) -> str:
    return f"{bare(place(uri))} at {endpoint_of(uri)}" if is_s3(uri) else bare(place(uri))
