"""The stage `prepare`."""

from foldray import storage
from foldray.config.corpus import BUILTIN_CORPUS, CorpusSpec
from foldray.config.spec import RunSpec
from foldray.data.corpora import Corpus, find_corpus
from foldray.data.manifest import Manifest, read_quarantine
from foldray.errors import UserError
from foldray.runtime.terminal import counting, print_status
from foldray.storage.layout import PreparedCorpus, Store


def prepare_stage(spec: RunSpec) -> tuple[str, Manifest]:
    """The prepared corpus of a spec, made if it is not there: its URI and manifest."""
    return prepare_corpus(spec.corpus, spec.storage.root)


def prepare_corpus(corpus: CorpusSpec, root: str) -> tuple[str, Manifest]:
    """A corpus, prepared in the store `root` if it is not there: its URI and manifest."""
    return prepare_checked(checked_corpus(corpus, root), corpus, root)


def checked_corpus(corpus: CorpusSpec, root: str) -> Corpus:
    """The corpus behind a spec, after making sure that its prepared form could be written."""
    storage.check_writable(storage.absolute(root), "storage.root")
    return find_corpus(corpus, root)


def prepare_checked(found: Corpus, corpus: CorpusSpec, root: str, cpus: float = 1) -> tuple[str, Manifest]:
    from foldray.data.prepare import prepare

    builtin = corpus.path == BUILTIN_CORPUS
    print_status(
        f"corpus    {'the built-in voices (eSpeak NG)' if builtin else f'{corpus.path}, read as {found.layout}'}"
    )
    try:
        with counting("preparing") as on_progress:
            folder, manifest = prepare(found, corpus, root, cpus=cpus, on_progress=on_progress)
    except UserError as error:
        # Not where the store itself refused or stayed away: asking it again would wait as long once more.
        prepared = Store(root).corpus(found.corpus_id)
        if error.where.startswith("corpus.") and storage.exists(prepared.quarantine):
            _show_quarantine(prepared)
        raise
    if manifest.quarantined:
        _show_quarantine(PreparedCorpus(folder))
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
    kept = f"{manifest.utterances_out} of {manifest.utterances_in} utterances, {manifest.hours * 60:.1f} min"
    splits = ", ".join(f"{split} {count}" for split, count in manifest.rows_by_split.items())
    aside = f"{manifest.quarantined} quarantined{f' ({reasons})' if reasons else ''}"
    print_status(f"prepared  {kept} ({splits}), {aside}: {folder}")
    return folder, manifest


def _show_quarantine(corpus: PreparedCorpus) -> None:
    """The first few entries of the quarantine, so that nobody needs to open a table to see what is wrong."""
    entries = read_quarantine(corpus.uri)
    for entry in entries[:SHOWN]:
        print_status(f"set aside {entry['source']}: {entry['reason']} ({entry['detail']})")
    if len(entries) > SHOWN:
        print_status(f"set aside {len(entries) - SHOWN} more: {corpus.quarantine}")


SHOWN = 5
