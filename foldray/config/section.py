"""What all parts of a spec have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a spec: unknown fields are refused, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without_secret(uri: str) -> str:
    """The URI itself. Raises ValueError where it carries credentials."""
    _, _, rest = uri.partition("://")
    if "@" in rest.split("/", 1)[0] or "@" in rest.partition("?")[2]:
        raise ValueError("holds credentials; they come from the AWS environment, never from a spec")
    return uri
