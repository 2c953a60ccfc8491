"""Base of all sections of a spec."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a spec: immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without_secret(uri: str) -> str:
    """Return the URI. Raises ValueError if it contains credentials."""
    _, _, rest = uri.partition("://")
    if "@" in rest.split("/", 1)[0] or "@" in rest.partition("?")[2]:
        raise ValueError("contains credentials; set them in the AWS environment, never in a spec")
    return uri
