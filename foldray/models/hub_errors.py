"""What the hub refuses, and when it can't be reached, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, as the hub's library has it

from foldray.errors import UserError, one_line

LOGIN = "`hf auth login` or HF_TOKEN"
"""How to log in."""


@contextmanager
def hub_errors(name: str, where: str) -> Iterator[None]:
    """Turn what huggingface_hub raises while `name` is read into a UserError; its own messages have several lines.

    Args:
        name: The model on the hub.
        where: The field or argument that the error is about.
    """
    try:
        yield
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(where, _refused(name, error)) from None
    except (httpx.ConnectError, httpx.TimeoutException, *_UNREACHED) as error:
        raise UserError(where, _unreached(name, error)) from None
    except (httpx.TransportError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the hub
            raise
        problem = f"copying {name} from the hub was cut off ({one_line(error)}); try again"
        raise UserError(where, problem) from None


_UNREACHED = (RevisionResolutionError, EntryNotFoundError, OfflineModeIsEnabled)


def _refused(name: str, error: Exception) -> str:
    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, GatedRepoError):
        return f"{name} is gated on the hub; accept its terms at {page}, then log in with {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        problem = "is neither a local folder nor a model on the hub"
        return f"{name} {problem} ({page}); correct the name, or log in with {LOGIN} if it is private"
    if not isinstance(error, HfHubHTTPError):
        return f"{name[:100]} is neither a local folder nor a hub name such as facebook/wav2vec2-base"
    status = error.response.status_code
    if status in (401, 403):
        return f"the hub refuses to give {name} with your token (status {status}); log in again with {LOGIN}"
    return f"the hub answers status {status} for {name} ({page}); try again later, or give a local folder"


def _unreached(name: str, error: Exception) -> str:
    if constants.is_offline_mode():
        return f"{name} is not a local folder, and not whole in the hub's cache; unset HF_HUB_OFFLINE to copy it"
    cause = error.__cause__ or error
    problem = f"is not a local folder, and the hub ({constants.ENDPOINT}) can't be reached"
    return f"{name} {problem} ({one_line(cause, 100)}); try again when it can be, or give a local folder"
