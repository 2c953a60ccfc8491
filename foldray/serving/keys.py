"""The server's key, from the environment."""

import os
import re

from foldray.errors import UserError

KEY = "FOLDRAY_API_KEY"
SHORTEST_KEY = 16
SENDABLE = re.compile(r"[!-~]+")
"""What every client can send in a header: ASCII without spaces."""


def api_key() -> str | None:
    """The bearer token that clients send; None without one.

    Space around it is no part of it: a secret made from a file often ends with a newline.

    Raises:
        UserError: The key is too short, or no header can carry it.
    """
    given = os.environ.get(KEY)
    if given is None:
        return None
    key, fix = given.strip(), "use `openssl rand -hex 24`"
    if len(key) < SHORTEST_KEY:
        raise UserError(KEY, f"is shorter than {SHORTEST_KEY} characters; {fix}")
    if not SENDABLE.fullmatch(key):
        raise UserError(KEY, f"has characters that no header carries; {fix}")
    return key
