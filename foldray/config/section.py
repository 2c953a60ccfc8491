"""Base of all sections of a spec, and the type of its URIs."""

from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict

from foldray.errors import scrubbed


class Section(BaseModel):
    """A section of a spec: immutable, without unknown fields, infinity or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def without_secret(uri: str) -> str:
    """Return the URI. Raises ValueError, without showing it, if it contains credentials, encoded or not."""
    decoded = uri
    for _ in range(3):  # an encoded '%' may hide an encoded '@'
        decoded = unquote(decoded)
    _, _, rest = decoded.partition("://")
    if "@" in rest.split("/", 1)[0] or "@" in rest.partition("?")[2] or scrubbed(decoded) != decoded:
        raise ValueError("contains credentials; set them in the AWS environment, never in a spec")
    return uri


Uri = Annotated[str, AfterValidator(without_secret)]
"""A folder or URI in a spec. It contains no credentials, since specs are stored and shown."""
