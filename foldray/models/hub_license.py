"""Licences as the hub has them: an identifier, and a name and link for those it does not list."""

import re
from dataclasses import dataclass

from huggingface_hub import HfApi

from foldray.errors import UserError
from foldray.models.hub_errors import hub_errors

_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LINK = re.compile(r"https://[\w.-]+(?:/[\w./%+~-]*)?")


@dataclass(frozen=True)
class License:
    """A licence.

    Attributes:
        id: The hub's identifier, such as `apache-2.0`.
        name: Its name where the identifier is `other`.
        link: Where its text is.
    """

    id: str
    name: str | None = None
    link: str | None = None


def parse_license(text: str) -> License:
    """Return the licence that `--license` names, in any case. Raises UserError for what is not an identifier."""
    if not _ID.fullmatch(text.lower()):
        problem = f"'{text[:80]}' is not an identifier of the hub, such as apache-2.0, mit or cc-by-4.0"
        raise UserError("--license", f"{problem} (https://huggingface.co/docs/hub/repositories-licenses)")
    return License(text.lower())


def page_license(name: str) -> License | None:
    """Return the licence that a model's page on the hub states, None if it states none.

    Raises:
        UserError: The hub can't be asked; the error is about `--license`, which needs no hub.
    """
    try:
        with hub_errors(name, "--license"):
            card = HfApi().model_info(name).card_data
    except UserError as error:
        unread = f"that of the base model can't be read: {error.problem}"
        raise UserError("--license", f"set it, such as --license apache-2.0; {unread}") from None
    values = [card.get(key) if card else None for key in ("license", "license_name", "license_link")]
    found, called, link = [value if isinstance(value, str) else None for value in values]
    if not found or not _ID.fullmatch(found):
        return None
    return License(found, called[:80] if called else None, link if link and _LINK.fullmatch(link) else None)
