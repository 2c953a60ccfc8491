"""The exception whose message is written for users, and what no message may show."""

import os
import re

SHORTEST_SECRET = 8
"""Shorter values of AWS variables are not redacted: they would also match parts of words."""

_USER = re.compile(r"(?<=://)(?:[^\s/?#]*?(?:@|%40)|[^\s/:@]+:(?!\d{1,5}(?:[/?\s]|$))[^\s@]*@)")
"""What precedes a host: `user:password@`, also where the password has slashes, as AWS keys have."""
_SECRET_OPTION = (
    r"x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|credential|sig|[\w-]*(?:secret|password|"
    r"passwd|token|access_?key)[\w-]*"
)
_OPTION = re.compile(rf"(?i)([?&;](?:{_SECRET_OPTION})=)[^\s&;'\"]+")
"""An option after '?' whose value is a secret, as in signed URLs."""


def scrubbed(text: str) -> str:
    """Return the text without the values of variables that hold credentials and without secrets in its URLs."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN"):
        secret = os.environ.get(name, "")
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, f"({name})")
    return _OPTION.sub(r"\1(hidden)", _USER.sub("", text))


class UserError(Exception):
    """An error in the user's input or environment, reported in one line (exit code 2) without secrets.

    Args:
        where: Field, file or row with the error.
        problem: What is wrong and how to fix it.
    """

    def __init__(self, where: str, problem: str) -> None:
        where, problem = scrubbed(where), scrubbed(problem)
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class DamagedFileError(UserError):
    """A file does not contain what was written to it, such as JSON that was cut off."""


def one_line(error: BaseException, most: int = 200) -> str:
    """Return an exception's message on one line of at most `most` characters, or its class name if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
