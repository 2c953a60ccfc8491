"""Stores that are away are waited for; what they refuse is said in one line."""

import errno
import itertools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from foldray.errors import UserError, one_line
from foldray.storage.s3 import CONNECT_SECONDS, endpoint_of, store_of
from foldray.storage.uri import bare, bucket_and_key, is_local

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""How long a store may be away before the job gives up; FOLDRAY_STORAGE_RETRY_SECONDS in the environment wins."""

LONGEST_PAUSE = 5.0
SHORTEST_SECRET = 8  # a shorter one would also be found in words

_log = logging.getLogger("foldray.storage")
_lock = threading.Lock()
_away: set[str] = set()


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
        except UserError:
            raise
        except Exception as error:
            now = time.monotonic()
            gives_up = gives_up or now + _retry_seconds()
            if not is_transient(error) or now >= gives_up:
                _forget_outage(uri, back=not is_transient(error))
                raised = _translated(error, uri)
                raise raised from (None if raised is error else error)
            if attempt or now - began > CONNECT_SECONDS:  # a connection that was idle too long is no outage
                _say_away(error, uri)
            pause = min(LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.5, 1)
            time.sleep(min(pause, gives_up - now))
        else:
            _forget_outage(uri, back=True)
            return result
    raise AssertionError("unreachable")


def _retry_seconds() -> float:
    said = os.environ.get("FOLDRAY_STORAGE_RETRY_SECONDS") or RETRY_SECONDS
    try:
        return float(said)
    except ValueError:
        raise UserError("FOLDRAY_STORAGE_RETRY_SECONDS", f"'{said}' is no number of seconds; say 120") from None


def _say_away(error: BaseException, uri: str) -> None:
    """Warn once for an outage, whichever thread meets it first."""
    store = store_of(uri)
    with _lock:
        known = store in _away
        _away.add(store)
    if not known:
        reason = re.sub(r':? "https?://[^"]*"', "", scrubbed(one_line(error)))
        _log.warning("%s is away (%s); waiting up to %.0f s for it", store, reason, _retry_seconds())


def _forget_outage(uri: str, back: bool) -> None:
    if not _away:
        return
    store = store_of(uri)
    with _lock:
        known = store in _away
        _away.discard(store)
    if known and back:
        _log.warning("%s is back", store)


PASSING = {
    "networkconnection", "internalerror", "internalfailure", "serviceunavailable", "slowdown", "requesttimeout",
    "requesttimeoutexception", "throttling", "throttlingexception", "requestlimitexceeded", "toomanyrequests",
    "bandwidthlimitexceeded", "operationaborted", "incompletebody", "baddigest", "conditionalrequestconflict",
}  # fmt: skip
"""Answers of S3 that pass by themselves, in lower case."""

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
"""What to say of an answer, by its code in lower case."""

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
    "nocredentialserror": "nocredentials",
    "partialcredentialserror": "nocredentials",
    "credentialretrievalerror": "nocredentials",
    "profilenotfound": "nocredentials",
    "sslerror": "tls",
}


def explain(error: BaseException, uri: str) -> UserError | None:
    """One line for what a store refused or for one that is away, without any secret; None for other errors."""
    code, _ = answer_of(error)
    code = "away" if is_transient(error) else ALIKE.get(code, code)
    if isinstance(error, UserError) or not code or code in GONE:
        return None
    said = scrubbed(one_line(error))
    if code == "paramvalidationerror" and "bucket" in said.lower():
        code = "invalidbucketname"
    if code == "authorizationheadermalformed":
        code = "wrongregion" if "region" in said else "invalidaccesskeyid"
    template = REFUSALS.get(code, "{endpoint} refused {uri} ({said}); check AWS_ENDPOINT_URL and AWS_REGION")
    region = re.search(r"(?:expecting|located in) '([\w-]+)'", said)
    return UserError(
        "storage",
        template.format(
            bucket=bucket_and_key(uri)[0] or "''",
            endpoint=endpoint_of(uri),
            uri=bare(uri),
            said=said,
            region=f", {region[1]}" if region else "",
            token=" or unset AWS_SESSION_TOKEN" if os.environ.get("AWS_SESSION_TOKEN") else "",
        ),
    )


def _translated(error: Exception, uri: str) -> Exception:
    if answer_of(error)[0] in GONE:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), bare(uri))
    return explain(error, uri) or error


def answer_of(error: BaseException) -> tuple[str, int]:
    """Code (lower case) and HTTP status a store answered with; '' and 0 for errors of other kinds."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:  # botocore's ClientError
        code = str(response["Error"].get("Code", "unknown"))
        return code.lower(), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3"):
        return type(error).__name__.lower(), 0
    return "", 0


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a while."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if any(kind.__name__ in NETWORK for kind in type(error).__mro__):
        return not re.search("WRONG_VERSION_NUMBER|CERTIFICATE", str(error))
    code, status = answer_of(error)
    return code in PASSING or status == 429 or (status >= 500 and status != 501)


def scrubbed(text: str) -> str:
    """A text without the credentials of the environment, and without those in its URLs."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        secret = os.environ.get(name, "")
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, f"({name})")
    return re.sub(r"//[^/@\s]*@", "//", text)
