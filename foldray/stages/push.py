"""The stage `push`: a model with its card and results as a page on the Hugging Face hub, or as a folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from transformers import PreTrainedModel

from foldray import __version__, storage
from foldray.errors import UserError
from foldray.evaluation.provenance import FoundModel, find_model, run_id_of
from foldray.models.hub import is_page
from foldray.models.hub_license import License, page_license, parse_license
from foldray.models.hub_upload import CARD_FILE, Pushed, check_login, page_url, push_folder
from foldray.models.save_load import load_model
from foldray.results.hub_results import EVAL_FOLDER, EVAL_PREFIX, eval_files, parse_benchmarks
from foldray.results.model_card import model_card
from foldray.results.rows import ResultRow
from foldray.runtime.terminal import print_status, printable
from foldray.stages.card_facts import base_model, model_facts, rows_of
from foldray.stages.export import write_export
from foldray.storage.layout import EXPORTED_FILES, FOLD_FILE

KINDS = ("seed", "int8")


class PushedModel(TypedDict):
    """A model on the hub, or its page in a folder.

    Attributes:
        page: OWNER/NAME.
        where: The URL of the page, or the folder.
        commit: The page's newest commit; "" for a folder.
        changed: Whether anything was written.
        format: `seed` or `int8`.
        license: The licence's identifier.
        depths: The trained depths.
        rows: How many result rows the card has.
        files: Bytes of each file, by name.
        deleted: Files of an earlier push that were deleted.
    """

    page: str
    where: str
    commit: str
    changed: bool
    format: str
    license: str
    depths: list[int]
    rows: int
    files: dict[str, int]
    deleted: list[str]


def push_model(
    model: str,
    page: str,
    store: str,
    *,
    out: str | None = None,
    kind: str = "seed",
    license_id: str | None = None,
    benchmarks: Sequence[str] = (),
    private: bool = False,
    force: bool = False,
) -> PushedModel:
    """Publish a model with a card, a results row for each depth and its provenance.

    Args:
        model: A run id in the store, a run or checkpoint URI, a model folder, or OWNER/NAME of a fold on the hub.
        page: OWNER/NAME of its page.
        store: The store that run ids refer to, and that has the result rows.
        out: Write the page's files to this new folder instead; nothing is sent.
        kind: `seed`, or `int8` with one byte for each weight.
        license_id: The hub's identifier of the licence; by default that of the base model's page.
        benchmarks: Benchmarks of the hub as `[SPLIT=]OWNER/NAME:TASK`.
        private: Whether a new page is private.
        force: Whether to write over a page that foldray did not write.

    Raises UserError for a wrong page, licence or benchmark, and where the hub refuses.
    """
    wanted, named = parse_license(license_id) if license_id else None, parse_benchmarks(benchmarks)
    _check(page, out, kind, private, force)
    found = find_model(model, store)
    base = base_model(found)
    license_ = wanted or _license_of(base, model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        depths = write_export(found, folder, kind)
        exported = load_model(folder)
        rows = _rows(model, found, exported, kind)
        facts = model_facts(page, found, exported, rows, kind, base, license_)
        _write_texts(folder, eval_files(rows, page_url(page), named) | {CARD_FILE: model_card(facts, rows)})
        sizes = storage.list_tree(str(folder))
        if out is not None:
            storage.upload(folder, storage.absolute(out), last=FOLD_FILE)
            pushed = Pushed(storage.absolute(out), "", changed=True, deleted=[])
        else:
            message = printable(f"{run_id_of(found)}: depths {', '.join(map(str, depths))} (foldray {__version__})")
            pushed = push_folder(page, folder, message, is_ours=_is_ours, private=private, force=force)
    return PushedModel(
        page=page, where=pushed.url, commit=pushed.commit, changed=pushed.changed, deleted=pushed.deleted, format=kind,
        license=license_.id, depths=depths, rows=len(rows), files=sizes,
    )  # fmt: skip


def _rows(model: str, found: FoundModel, exported: PreTrainedModel, kind: str) -> list[ResultRow]:
    """The result rows of the card; says so if there are none."""
    rows = rows_of(found, exported, kind)
    if not rows:
        problem = f"{model} has no result rows in {found.store}, so the card has costs only"
        print_status(f"note      {problem}; score it with `foldray evaluate` and push again")
    return rows


def _write_texts(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _is_ours(file: str) -> bool:
    """Whether `push` writes a file of this name."""
    return file in EXPORTED_FILES or file.startswith(f"{EVAL_FOLDER}/{EVAL_PREFIX}")


def _check(page: str, out: str | None, kind: str, private: bool, force: bool) -> None:
    """Raise UserError for arguments that can't be right, and without a login, before anything is read or sent."""
    if not is_page(page):
        problem = "is not OWNER/NAME, such as my-org/an4-fold: letters, digits, '-', '_' and '.', at most 96"
        raise UserError("OWNER/NAME", f"'{page[:120]}' {problem}")
    if kind not in KINDS:
        raise UserError("--format", f"must be one of {', '.join(KINDS)} (got '{kind}'); the page has every depth")
    if out is None:
        check_login(page)
        return
    for option, given in (("--private", private), ("--force", force)):
        if given:
            raise UserError(option, "is for a page on the hub, and --out writes a folder; leave one of them out")
    place = storage.absolute(out)
    if storage.exists(place) or storage.list_tree(place):
        raise UserError("--out", f"{out} is not a new folder; name one")
    storage.check_writable(place, "--out")


def _license_of(base: str, model: str) -> License:
    """The licence of the base model. Raises UserError if there is none to take."""
    found = page_license(base) if base else None
    if found:
        return found
    reason = f"the page of {base} states none" if base else f"no model on the hub is known that {model} started from"
    raise UserError("--license", f"set it, such as --license apache-2.0: {reason}")
