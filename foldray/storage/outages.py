"""Retries for unavailable stores, with one notice when an outage begins and one when it ends."""

import itertools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from foldray.errors import UserError, one_line, scrubbed
from foldray.storage.refusals import is_transient, readable
from foldray.storage.s3 import CONNECT_SECONDS, store_of
from foldray.storage.uri import is_local

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""How long requests are retried from the first failure; FOLDRAY_STORAGE_RETRY_SECONDS overrides it."""

LONGEST_PAUSE = 5.0

_log = logging.getLogger("foldray.storage")
_lock = threading.Lock()
_unavailable: set[str] = set()


def retrying(action: Callable[[], T], uri: str) -> T:
    """Return the result of `action`, which is retried for `RETRY_SECONDS` while the store of `uri` is unavailable.

    Args:
        action: Sends requests to the store; must be safe to repeat.
        uri: Location in the store; an action on a local path is never retried.

    Raises:
        UserError: the store refuses the request, or stays unavailable (see `refusals.explain`).
        FileNotFoundError: the file does not exist.
    """
    if is_local(uri):
        return action()
    began, deadline = time.monotonic(), 0.0
    for attempt in itertools.count():
        try:
            result = action()
        except UserError:
            raise
        except Exception as error:
            now = time.monotonic()
            deadline = deadline or now + _retry_seconds()
            transient = is_transient(error)
            if not transient or now >= deadline:
                _end_outage(uri, available=not transient)
                raised = readable(error, uri)
                raise raised from (None if raised is error else error)
            if attempt or now - began > CONNECT_SECONDS:  # one quick failure may be an idle connection, now closed
                _begin_outage(error, uri)
            pause = min(LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.5, 1)
            time.sleep(min(pause, deadline - now))
        else:
            _end_outage(uri, available=True)
            return result
    raise AssertionError("unreachable")


def _retry_seconds() -> float:
    value = os.environ.get("FOLDRAY_STORAGE_RETRY_SECONDS") or RETRY_SECONDS
    try:
        return float(value)
    except ValueError:
        problem = f"'{value}' is not a number of seconds; set it to a number such as 120"
        raise UserError("FOLDRAY_STORAGE_RETRY_SECONDS", problem) from None


def _begin_outage(error: BaseException, uri: str) -> None:
    """Warn once per outage, whichever thread fails first."""
    store = store_of(uri)
    with _lock:
        known = store in _unavailable
        _unavailable.add(store)
    if not known:
        reason = re.sub(r':? "https?://[^"]*"', "", scrubbed(one_line(error)))
        _log.warning("%s is unavailable (%s); retrying for up to %.0f s", store, reason, _retry_seconds())


def _end_outage(uri: str, available: bool) -> None:
    if not _unavailable:
        return
    store = store_of(uri)
    with _lock:
        known = store in _unavailable
        _unavailable.discard(store)
    if known and available:
        _log.warning("%s is available again", store)
