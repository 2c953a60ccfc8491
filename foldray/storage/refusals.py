"""Classification of S3 errors: which are transient, and one readable line for each refusal."""

import errno
import os
import re

from foldray.errors import UserError, one_line, scrubbed
from foldray.storage.s3 import endpoint_of
from foldray.storage.uri import bare, bucket_and_key

TRANSIENT = {
    "networkconnection", "internalerror", "internalfailure", "serviceunavailable", "slowdown", "requesttimeout",
    "requesttimeoutexception", "throttling", "throttlingexception", "requestlimitexceeded", "toomanyrequests",
    "bandwidthlimitexceeded", "operationaborted", "incompletebody", "baddigest", "conditionalrequestconflict",
}  # fmt: skip
"""Error codes of S3 after which the same request may succeed, in lower case."""

NETWORK = {
    "ConnectionError", "EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError",
    "ProxyConnectionError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError", "ProtocolError",
}  # fmt: skip
"""Exceptions of botocore and urllib3 for a server that does not respond, or not completely."""

NOT_FOUND = {"nosuchkey", "404", "notfound", "resourcenotfound"}

RENEW = "renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"

REFUSALS = {
    "nosuchbucket": "bucket {bucket} not found at {endpoint}; create it, or fix its name or AWS_ENDPOINT_URL",
    "invalidbucketname": "{bucket} is not a valid bucket name; fix the URI {uri}",
    "invalidaccesskeyid": "{endpoint} does not know the access key for {bucket}; fix AWS_ACCESS_KEY_ID{token}",
    "signaturedoesnotmatch": "the secret key for {bucket} at {endpoint} is wrong; fix AWS_SECRET_ACCESS_KEY",
    "expiredtoken": "the credentials for {bucket} at {endpoint} have expired; " + RENEW,
    "invalidtoken": "{endpoint} rejects the session token for {bucket}; " + RENEW + ", or unset AWS_SESSION_TOKEN",
    "accessdenied": "{endpoint} denies access to {uri}; use credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE or a role) "
    "with permission to read, list, write and delete there",
    "wrongregion": "bucket {bucket} is in another region{region}; set AWS_REGION to it",
    "requesttimetooskewed": "this machine's clock differs too much from that of {endpoint}; set the clock",
    "nocredentials": "no credentials for {bucket} ({reason}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE or a role, or append ?anonymous=true for a public bucket",
    "tls": "TLS connection to {endpoint} failed ({reason}); fix http or https in AWS_ENDPOINT_URL, or set "
    "AWS_CA_BUNDLE",
    "unavailable": "{endpoint} is unavailable ({reason}); start it, or fix AWS_ENDPOINT_URL or the network",
}
"""Messages by error code, in lower case."""

OTHER_REFUSAL = "{endpoint} refused {uri} ({reason}); check AWS_ENDPOINT_URL and AWS_REGION"

SYNONYMS = {
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
"""Error codes and exception names that share a message with a code of `REFUSALS`."""


def readable(error: Exception, uri: str) -> Exception:
    """Translate an error of boto3: FileNotFoundError, UserError, or the error itself if it comes from elsewhere."""
    if error_code(error)[0] in NOT_FOUND:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), bare(uri))
    return explain(error, uri) or error


def explain(error: BaseException, uri: str) -> UserError | None:
    """Describe a refusal or an unavailable store in one line without secrets; None for other errors."""
    if isinstance(error, UserError) or not (code := _message_code(error)) or code in NOT_FOUND:
        return None
    reason = scrubbed(one_line(error))
    region = re.search(r"(?:expecting|located in) '([\w-]+)'", reason)
    return UserError(
        "storage",
        REFUSALS.get(code, OTHER_REFUSAL).format(
            bucket=bucket_and_key(uri)[0] or "''",
            endpoint=endpoint_of(uri),
            uri=bare(uri),
            reason=reason,
            region=f", {region[1]}" if region else "",
            token=" or unset AWS_SESSION_TOKEN" if os.environ.get("AWS_SESSION_TOKEN") else "",
        ),
    )


def _message_code(error: BaseException) -> str:
    """Key of `REFUSALS` for an error, another code, or '' for errors that do not come from S3 or the network."""
    if is_transient(error):
        return "unavailable"
    code = error_code(error)[0]
    if code == "paramvalidationerror" and "bucket" in one_line(error).lower():
        return "invalidbucketname"
    if code == "authorizationheadermalformed":
        return "wrongregion" if "region" in one_line(error) else "invalidaccesskeyid"
    return SYNONYMS.get(code, code)


def error_code(error: BaseException) -> tuple[str, int]:
    """Return the error code in lower case and the HTTP status of a response; '' and 0 for errors of other libraries.

    Errors that boto3 raises without a response have the name of their class as code.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:  # botocore's ClientError
        code = str(response["Error"].get("Code", "unknown"))
        return code.lower(), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3"):
        return type(error).__name__.lower(), 0
    return "", 0


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if any(kind.__name__ in NETWORK for kind in type(error).__mro__):
        return not re.search("WRONG_VERSION_NUMBER|CERTIFICATE", str(error))
    code, status = error_code(error)
    return code in TRANSIENT or status == 429 or (status >= 500 and status != 501)
