"""The stage `transcribe` as a job: transcripts of a corpus in shards, and pseudo-labels."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from foldray import storage
from foldray.errors import UserError
from foldray.evaluation.beam_options import BeamOptions
from foldray.evaluation.decode import parse_decoding
from foldray.evaluation.provenance import FoundModel, find_model
from foldray.models.families import family_of_config
from foldray.models.save_load import read_plans
from foldray.results.auto_depth import read_auto
from foldray.runtime.terminal import counting, print_status
from foldray.stages.transcribe import check_chunk
from foldray.storage.layout import (
    EXPORT_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    TRAINING_FILES,
    ModelFolder,
    Store,
    TranscriptsFolder,
)
from foldray.storage.records import read_as
from foldray.transcription.corpus_job import Progress, TranscriptsManifest, transcribe_plan
from foldray.transcription.corpus_plan import Agreement, Settings, listing_digest, store_plan
from foldray.transcription.sources import Source, find_source


@dataclass(frozen=True)
class HowMany:
    """What a job runs on.

    Attributes:
        workers: Processes that hold the model; by default one for each CPU of the cluster, or each GPU.
        use_gpu: Whether each has a GPU.
    """

    workers: int | None = None
    use_gpu: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for less than one process."""
        if self.workers is not None and self.workers < 1:
            raise UserError("--workers", f"must be at least 1 (got {self.workers})")


def transcribe_corpus(
    model: str,
    store: str,
    given: Sequence[str],
    out: str | None = None,
    depth: int | Literal["auto"] | None = None,
    decoding: str | None = None,
    language: str = "",
    beam: BeamOptions | None = None,
    *,
    splits: Sequence[str] = (),
    chunk_seconds: float | None = None,
    agree: float | None = None,
    agree_depths: Sequence[int] = (),
    resources: HowMany = HowMany(),
) -> tuple[TranscriptsFolder, TranscriptsManifest]:
    """Transcribe corpora with Ray Data into shards of Parquet and JSON lines. Killed and started again, it resumes.

    Args:
        model: A run id in the store, a run or checkpoint URI, or a model folder.
        store: The store that ids refer to, and where the transcripts go without `out`.
        given: Corpora of any layout, prepared corpora, folders, patterns, manifests, files.
        out: Folder or URI of the transcripts.
        depth: The depth of the texts, the deepest by default; `auto` chooses one for each part of a recording.
        decoding: How to decode; by default CTC where the model has it.
        language: Language code of utterances that have none.
        beam: Options of the beam search.
        splits: Splits of the corpora; by default all.
        chunk_seconds: Longest part that the model runs on at once; by default as long as its training utterances.
        agree, agree_depths: Keep what two depths (by default the shallowest and `depth`) agree on as a corpus: the
            largest WER of one against the other.
        resources: What it runs on.

    Returns:
        The folder, and what it holds.

    Raises:
        UserError: An argument is wrong, or the folder belongs to other settings; nothing is transcribed.

    Example:
        >>> out, manifest = transcribe_corpus("an4-1a2b3c4d5e", "./foldray-store", ["s3://calls/2026"], agree=0.1)
        >>> manifest.utterances, manifest.kept
        (10000, 7310)
    """
    check_chunk(chunk_seconds)
    found = find_model(model, store)
    depths = _depths(found, depth, agree, agree_depths)
    source = find_source(given, store, splits)
    settings = _settings(found, source, splits, depths, parse_decoding(decoding, beam), beam, language, chunk_seconds)
    return _transcribe(_out(out, store, settings, source), settings, source, found.uri, resources)


def _settings(
    found: FoundModel,
    source: Source,
    splits: Sequence[str],
    depths: tuple[int | Literal["auto"], Agreement | None],
    decoding: str | None,
    beam: BeamOptions | None,
    language: str,
    chunk_seconds: float | None,
) -> Settings:
    """What the texts depend on, which the folder's plan keeps."""
    return Settings(
        source=source.names,
        splits=list(splits),
        model=found.name,
        model_digest=folder_digest(found.uri),
        depth=depths[0],
        decoding=decoding or _usual_decoding(found.uri),
        beam={name: value for name, value in asdict(beam).items() if value is not None} if beam else {},
        language=language,
        chunk_seconds=chunk_seconds,
        agree=depths[1],
    )


def _depths(
    found: FoundModel, depth: int | Literal["auto"] | None, agree: float | None, agree_depths: Sequence[int]
) -> tuple[int | Literal["auto"], Agreement | None]:
    """The depth of the texts, and which are kept. Raises UserError for a depth without a path."""
    plan, _ = read_plans(found.uri)
    if agree is None and agree_depths:
        raise UserError("--agree-depths", "has no effect without --agree; give --agree too, such as 0.1")
    if agree is not None and not 0 <= agree <= 1:
        raise UserError("--agree", f"must be a word error rate from 0 to 1, such as 0.1 (got {agree:g})")
    if depth == "auto":
        read_auto(found.uri, plan.depths)
        if agree is not None:
            raise UserError("--depth", "auto has no second depth to agree with; leave it out, or name a depth")
        return "auto", None
    deepest = plan.depths[-1] if depth is None else depth
    pair = sorted(agree_depths) or [plan.depths[0], deepest]
    chosen = pair[-1] if depth is None and agree is not None else deepest
    for each, option in [(chosen, "--depth"), *((each, "--agree-depths") for each in pair if agree is not None)]:
        try:
            plan.path(each)
        except KeyError as error:
            trained = ", ".join(map(str, plan.depths))
            raise UserError(option, f"{error.args[0]} (trained: {trained})") from None
    if agree is None:
        return chosen, None
    if len(pair) != 2 or pair[0] == pair[1] or pair[1] != chosen:
        raise UserError("--agree-depths", f"name a shallow and a deep depth, such as 4,12 (got {pair}, depth {chosen})")
    return chosen, Agreement(most=agree, depths=(pair[0], pair[1]))


def _usual_decoding(uri: str) -> str:
    """CTC where the model has it, else attention, from its configuration alone."""
    from transformers import AutoConfig

    with storage.local_folder(uri, without=TRAINING_FILES) as local:
        family = family_of_config(AutoConfig.from_pretrained(local, trust_remote_code=False))
    return "ctc" if family is None or family.ctc else "attention"


NOT_OF_THE_MODEL = (EXPORT_FILE, STATE_FILE, MANIFEST_FILE)


def folder_digest(uri: str) -> str:
    """Ten hexadecimal digits of the files of a model that its texts depend on."""
    digest = hashlib.sha256()
    folder = ModelFolder(uri)
    for name in storage.list_files(uri):
        if name.endswith((".json", ".safetensors")) and name not in (*TRAINING_FILES, *NOT_OF_THE_MODEL):
            digest.update(name.encode() + hashlib.sha256(storage.read_bytes(folder.file(name))).digest())
    return digest.hexdigest()[:10]


def _out(out: str | None, store: str, settings: Settings, source: Source) -> TranscriptsFolder:
    """The folder of the transcripts: the one that was named, or one of the store with a name of its own."""
    if out is None:
        of_both = f"{settings.digest} {listing_digest(source.utterances)}"
        name = f"{settings.model}-{hashlib.sha256(of_both.encode()).hexdigest()[:10]}"
        return Store(store).transcripts(name)
    folder = TranscriptsFolder(storage.absolute(out))
    for name in source.names:
        if f"{folder.uri}/".startswith(f"{name.rstrip('/')}/"):
            raise UserError("--out", f"{folder.uri} is in {name}, whose audio is read; name a folder elsewhere")
    storage.check_writable(folder.uri, "--out")
    return folder


def _transcribe(
    folder: TranscriptsFolder, settings: Settings, source: Source, model: str, resources: HowMany
) -> tuple[TranscriptsFolder, TranscriptsManifest]:
    for note in source.notes:
        print_status(f"corpus    {note}")
    plan = store_plan(folder, settings, source.utterances)
    if plan.listing != listing_digest(source.utterances):
        fix = "this folder keeps its plan; name another one for the corpus of today"
        print_status(f"note      the corpus has changed since {folder.uri} was begun; {fix}")
    if storage.exists(folder.manifest):
        return folder, _told(folder, read_as(TranscriptsManifest, folder.manifest), "(done before)")
    began = time.monotonic()
    with counting("shards") as show:

        def on_progress(progress: Progress) -> None:
            show(progress.done, progress.total, describe(progress, time.monotonic() - began))

        show(0, plan.shards)
        manifest = transcribe_plan(
            plan, model, folder, workers=resources.workers, use_gpu=resources.use_gpu, on_progress=on_progress
        )
    return folder, _told(folder, manifest, f"in {time.monotonic() - began:.0f} s")


def describe(progress: Progress, seconds: float) -> str:
    """How fast a job is, and how long it will still take.

    Example:
        >>> describe(Progress(done=30, total=90, fresh=30, fresh_hours=5.0), 120.0)
        '150 audio hours an hour, 4:00 left'
    """
    if not progress.fresh:
        return ""
    left = round(seconds * (progress.total - progress.done) / progress.fresh)
    return f"{progress.fresh_hours * 3600 / seconds:.0f} audio hours an hour, {left // 60}:{left % 60:02d} left"


def _told(folder: TranscriptsFolder, manifest: TranscriptsManifest, when: str) -> TranscriptsManifest:
    """Print what a folder holds."""
    counted = ", ".join(f"{count:,} {reason}" for reason, count in manifest.errors.items())
    errors = sum(manifest.errors.values())
    print_status(
        f"done      {manifest.utterances - errors:,} of {manifest.utterances:,} utterances, {manifest.hours:.2f} hours "
        f"{when}, {errors:,} without a text{f' ({counted})' if counted else ''}: {folder.uri}"
    )
    if manifest.notes:
        print_status(f"note      {manifest.notes:,} texts may lack something; see the column notes")
    if manifest.settings.agree:
        missing = ", ".join(f"{count:,} {reason}" for reason, count in manifest.left_out.items())
        print_status(
            f"kept      {manifest.kept:,} utterances of which depths {manifest.settings.agree.depths[0]} and "
            f"{manifest.settings.agree.depths[1]} agree ({missing or 'none'} left out): train on them with "
            f"corpus.path={folder.corpus} corpus.splits=[train,valid]"
        )
    return manifest
