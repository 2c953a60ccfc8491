"""The server's key, from the environment."""

import os

from foldray.errors import UserError

KEY = "FOLDRAY_API_KEY"
SHORTEST_KEY = 16


def api_key() -> str | None:
    """The bearer token that clients send; None without one. Raises UserError for one that is guessed too soon."""
    key = os.environ.get(KEY)
    if key is not None and len(key) < SHORTEST_KEY:
        raise UserError(KEY, f"is shorter than {SHORTEST_KEY} characters; use `openssl rand -hex 24`")
    return key
