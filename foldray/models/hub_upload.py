"""Files to a page on the Hugging Face hub: one commit, and only over what foldray wrote."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, as the hub's library has it

from foldray.errors import UserError, one_line
from foldray.models.hub_errors import LOGIN
from foldray.storage.layout import FOLD_FILE, INT8_FILE, PRIVATE_FILE, README_FILE, STOCK_FILE

CARD_FILE = README_FILE
_OF_THE_HUB = (".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""Files of a page that was made by hand and has no model yet, besides a card without a text."""
_STUB = re.compile(r"\s*(---\n.*?\n---\s*)?", re.DOTALL)
"""The card that the hub writes: metadata, and no text."""
_WEIGHTS = (STOCK_FILE, PRIVATE_FILE, INT8_FILE)
MOST_BYTES = 50 * 10**9
"""Largest file that the hub takes (its docs on storage limits)."""
_OFFLINE = "write the page to a folder with -o DIR"


@dataclass(frozen=True)
class Pushed:
    """A page after a push.

    Attributes:
        url: The page.
        commit: Its newest commit.
        changed: Whether that is a new one.
        deleted: Files of an earlier push that the model no longer has.
    """

    url: str
    commit: str
    changed: bool
    deleted: list[str]


def page_url(name: str) -> str:
    """Return the URL of a model's page."""
    return f"{constants.ENDPOINT}/{name}"


def check_login(name: str) -> None:
    """Raise UserError if there is no token to write with, or the hub may not be asked."""
    if constants.is_offline_mode():
        raise UserError(name, f"can't be pushed to while HF_HUB_OFFLINE is set; unset it, or {_OFFLINE}")
    with _errors(name):
        if not get_token():
            raise UserError(name, f"needs a token that may write; log in with {LOGIN}, or {_OFFLINE}")


def push_folder(
    name: str, folder: Path, message: str, *, is_ours: Callable[[str], bool], private: bool, force: bool
) -> Pushed:
    """Make a folder the content of a page, in one commit; the same content again makes none.

    Args:
        name: OWNER/NAME; the page is made if there is none.
        folder: The files; their paths in it are those on the page.
        message: First line of the commit.
        is_ours: Whether foldray writes a file of this name: such files that the folder lacks are deleted from a page
            with a fold. From any other page only weights are: they would be taken for those of this model.
        private: Whether a new page is private.
        force: Whether to write over a page that foldray did not write.

    Raises:
        UserError: The hub refuses or can't be reached, a file is too large, or the page is not one of foldray's.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        if file.stat().st_size > MOST_BYTES:
            size = f"{file.name} has {file.stat().st_size / 1e9:.1f} GB, the hub takes {MOST_BYTES / 1e9:.0f} GB a file"
            raise UserError(name, f"{size}; push the model with --format int8")
    check_login(name)
    with _errors(name), _quiet():
        _check_card(name, folder / CARD_FILE)  # before a page is made
        page = _page(name, private)
        present = {file.rfilename for file in page.siblings or []}
        if not force:
            _check_ours(name, page, present)
        given = {file.relative_to(folder).as_posix(): file for file in files}
        ours = filter(is_ours, present - given.keys())
        stale = sorted(file for file in ours if FOLD_FILE in present or file in _WEIGHTS)
        commit = HfApi().create_commit(
            name,
            [
                *(CommitOperationAdd(path, file) for path, file in given.items()),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=message,
            parent_commit=page.sha,
        )
    return Pushed(page_url(name), commit.oid, commit.oid != page.sha, stale)


def _check_card(name: str, card: Path) -> None:
    """Raise UserError for a card whose metadata the hub does not take; only the licence is not ours."""
    try:
        ModelCard.load(card).validate()
    except ValueError as error:
        with suppress(ValueError, LookupError, TypeError):
            error = ValueError("; ".join(str(each["message"]) for each in json.loads(str(error))["errors"]))
        raise UserError(name, f"the hub does not take the card ({one_line(error)}); correct --license") from None


def _page(name: str, private: bool) -> ModelInfo:
    """The page, made if there is none. Raises UserError if a public page should be private."""
    api = HfApi()
    try:
        page = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=private or None)
        return api.model_info(name)
    if private and not page.private:
        problem = f"is public already; make it private in {page_url(name)}/settings, or leave --private out"
        raise UserError(name, problem)
    return page


def _check_ours(name: str, page: ModelInfo, present: set[str]) -> None:
    """Raise UserError for a page with files that no push of foldray wrote."""
    if FOLD_FILE in present:
        return
    foreign: Sequence[str] = sorted(present.difference(_OF_THE_HUB, {CARD_FILE}))
    if not foreign and CARD_FILE in present:
        card = hf_hub_download(name, CARD_FILE, revision=page.sha)
        foreign = [] if _STUB.fullmatch(Path(card).read_text(encoding="utf-8", errors="replace")) else [CARD_FILE]
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise UserError(name, f"has files that foldray did not write ({shown}); choose another name, or give --force")


# --- Errors ----------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub from logging what the command says itself, such as that nothing has changed."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises while it writes into a UserError, without the token."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, HfHubHTTPError):
            raise  # the disk, not the hub
        problem = _refused(name, cause) if isinstance(cause, HfHubHTTPError) else _failed(cause)
        raise UserError(name, _without_token(problem)) from None


def _cause(error: BaseException) -> BaseException:
    """The error of the hub or of the connection that an error of huggingface_hub wraps."""
    wrapped = error.__cause__
    return wrapped if isinstance(error, RuntimeError | ValueError) and isinstance(wrapped, OSError) else error


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "(token)") if token else text


def _refused(name: str, error: HfHubHTTPError) -> str:
    owner, status = name.partition("/")[0], error.response.status_code
    fixes = {
        401: f"the hub does not take your token; log in again with {LOGIN}",
        403: f"your token may not write there; give it the right to write to {owner}, or name an owner that you are",
        404: f"your token may not see it; give it the right to write to {owner}",
        409: "is taken by a page that your token may not see; choose another name",
        412: "was changed while it was written to, and stays as it is; run the same command again",
        413: "has files that are too large for the hub; push the model with --format int8",
        429: "the hub takes no more requests from you for now; run the same command again in some minutes",
    }
    said = one_line(ValueError(error.server_message)) if error.server_message else ""
    fix = fixes.get(status, "the hub can't take it; run the same command again later")
    return f"{fix} (status {status}{f': {said}' if said else ''})"


def _failed(error: BaseException) -> str:
    unreached = (httpx.ConnectError, httpx.TimeoutException, OfflineModeIsEnabled)
    if isinstance(error, unreached):
        where = f"the hub ({constants.ENDPOINT}) can't be reached"
        return f"{where} ({one_line(error, 100)}); run the same command again when it can, or {_OFFLINE}"
    if isinstance(error, httpx.TransportError):
        return f"pushing was cut off ({one_line(error, 100)}); the page is unchanged, run the same command again"
    return f"the hub does not take it ({one_line(error)})"
