"""The stage `prepare`: from a raw corpus to shards, index, quarantine and manifest in the store."""

from foldray import storage
from foldray.config.corpus import BUILTIN_CORPUS, CorpusSpec, TextProfile
from foldray.config.spec import RunSpec
from foldray.data.corpora import Corpus, find_corpus
from foldray.data.manifest import LeftOut, Manifest, read_quarantine
from foldray.errors import UserError
from foldray.runtime.terminal import counting, print_status
from foldray.storage.layout import PreparedCorpus, Store


def prepare_stage(spec: RunSpec) -> tuple[str, Manifest]:
    """Prepare the corpus of a spec unless it is prepared; return its URI and manifest."""
    return prepare_corpus(spec.corpus, spec.storage.root)


def prepare_corpus(corpus: CorpusSpec, root: str) -> tuple[str, Manifest]:
    """Prepare a corpus in the store `root` unless it is prepared; return its URI and manifest."""
    return prepare_checked(checked_corpus(corpus, root), corpus, root)


def checked_corpus(corpus: CorpusSpec, root: str) -> Corpus:
    """Find the raw corpus of a spec. Raises UserError if the store `root` is not writable."""
    storage.check_writable(storage.absolute(root), "storage.root")
    return find_corpus(corpus, root)


def prepare_checked(found: Corpus, corpus: CorpusSpec, root: str, cpus: float = 1) -> tuple[str, Manifest]:
    """Prepare a corpus that `checked_corpus` found and print what was kept and what was quarantined.

    Args:
        found: The raw corpus.
        corpus: The spec's section.
        root: The store.
        cpus: Logical CPUs that a local Ray needs for the stages that follow.

    Returns:
        URI and manifest of the prepared corpus.
    """
    from foldray.data.prepare import prepare

    builtin = corpus.path == BUILTIN_CORPUS
    print_status(
        f"corpus    {'the built-in voices (eSpeak NG)' if builtin else f'{corpus.path}, read as {found.layout}'}"
    )
    if found.note:
        print_status(f"ids       {found.note}")
    try:
        with counting("preparing") as on_progress:
            folder, manifest = prepare(found, corpus, root, cpus=cpus, on_progress=on_progress)
    except UserError as error:
        # Only for errors in the corpus: an unreachable store would be waited for a second time.
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
    spoken = {language for shard in manifest.shards for language in shard.languages}
    if manifest.special and (unknown := sorted(filter(manifest.special.lacks, spoken))):
        print_status(f"note      the tokenizer has no prompt for {', '.join(unknown)}: they get the default one")
    if manifest.left_out.utterances:
        print_status(f"left out  {_describe_left_out(manifest.left_out, corpus.text)}")
    return folder, manifest


def _describe_left_out(left: LeftOut, profile: TextProfile) -> str:
    """What normalisation left out, in one line."""
    kinds = {"digits": left.digits, "letters": left.letters, "signs": left.signs, "whole words": left.words}
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    commonest = " ".join(f"{character} ({count:,})" for character, count in left.characters.items())
    fix = (
        "write numbers as words, or set corpus.text=unicode" if profile.startswith("english") else "write them as words"
    )
    return f"corpus.text={profile} left out {counts} of {left.utterances:,} utterances: {commonest}; {fix}"


def _show_quarantine(corpus: PreparedCorpus) -> None:
    """Print the first entries of the quarantine."""
    entries = read_quarantine(corpus.uri)
    for entry in entries[:SHOWN]:
        print_status(f"excluded  {entry['source']}: {entry['reason']} ({entry['detail']})")
    if len(entries) > SHOWN:
        print_status(f"excluded  {len(entries) - SHOWN} more: {corpus.quarantine}")


SHOWN = 5
