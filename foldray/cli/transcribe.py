"""The verb `transcribe`: text, times and subtitles for recordings."""

from typing import TYPE_CHECKING, Any, Literal

import typer

from foldray.cli.options import (
    DEFAULT_STORE,
    Agree,
    AgreeDepths,
    Beam,
    Chunk,
    Decoding,
    Hotwords,
    HotwordWeight,
    JobWorkers,
    Json,
    Language,
    Lm,
    LmWeight,
    Model,
    Recordings,
    Splits,
    Store,
    TextDepth,
    TextFormat,
    TextOut,
    UseGpu,
    WordBonus,
    Words,
)
from foldray.cli.use import option, parse_depths
from foldray.errors import UserError
from foldray.models.device import inference_device
from foldray.runtime.terminal import counting, print_json, print_line, print_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from foldray.transcription.files import Recording
    from foldray.transcription.formats import Format
    from foldray.transcription.transcript import Transcript


def transcribe(
    model: Model,
    files: Recordings,
    depth: TextDepth = None,
    kind: TextFormat = "text",
    out: TextOut = None,
    decoding: Decoding = None,
    language: Language = "",
    chunk: Chunk = None,
    lm: Lm = None,
    lm_weight: LmWeight = None,
    word_bonus: WordBonus = None,
    hotwords: Hotwords = None,
    hotword_weight: HotwordWeight = None,
    words: Words = None,
    beam: Beam = None,
    split: Splits = None,
    workers: JobWorkers = None,
    use_gpu: UseGpu = False,
    agree: Agree = None,
    agree_depths: AgreeDepths = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Transcribe recordings of any length, or with --format parquet a corpus of any size as a job.

    A recording that can't be used has a line on stderr and the exit code is 2; all others get their text.

    Example: foldray transcribe an4-1a2b3c4d5e meeting.flac --depth 6 --format srt -o subtitles

    Example: foldray transcribe an4-1a2b3c4d5e s3://bucket/calls --format parquet -o s3://bucket/texts
    """
    from foldray.evaluation.beam_options import beam_options
    from foldray.stages.transcribe import transcribe_stage
    from foldray.transcription.formats import TIMED, parse_format

    search = beam_options(beam, lm, lm_weight, word_bonus, hotwords, hotword_weight, words)
    if kind == "parquet":
        corpus = {"splits": split.split(",") if split else (), "chunk_seconds": chunk, "agree": agree}
        job = {"agree_depths": parse_depths(agree_depths, "--agree-depths"), "resources": (workers, use_gpu)}
        _as_job((model, store, files, out, parse_depth(depth), decoding, language, search), {**corpus, **job}, as_json)
        return
    _check_unset(split=split, workers=workers, agree=agree, agree_depths=agree_depths)
    written_as = parse_format(kind)
    times = True if written_as in TIMED else None if as_json else False
    options: dict[str, Any] = {"words": times, "chunk_seconds": chunk, "device": inference_device(use_gpu)}
    with option("--depth"):
        asked = (parse_depth(depth), decoding, language, search)
        recordings, results = transcribe_stage(model, store, files, *asked, **options)
    _print_all(recordings, results, written_as, out, as_json)


def _check_unset(**options: object) -> None:
    """Raise UserError for an option of jobs."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')}", "is for jobs; add --format parquet")


def _as_job(place: tuple[Any, ...], options: dict[str, Any], as_json: bool) -> None:
    """Transcribe a corpus as a job; prints its manifest with --json."""
    from foldray.stages.transcribe_corpus import HowMany, transcribe_corpus

    options["resources"] = HowMany(*options["resources"])
    with option("--depth"):
        folder, manifest = transcribe_corpus(*place, **options)
    if as_json:
        print_json({"out": folder.uri, **manifest.model_dump(exclude={"shards"})})


def _print_all(
    recordings: "Sequence[Recording]",
    results: "Iterable[tuple[Recording, Transcript | UserError]]",
    kind: "Format",
    out: str | None,
    as_json: bool,
) -> None:
    """Print or write every transcript as it comes. Exits with 2 if a recording could not be used."""
    from foldray.transcription.formats import as_json as described

    write = _writer([recording.name for recording in recordings], kind, out, quiet=as_json)
    entries: list[dict[str, object]] = []
    with counting("recordings") as show:
        show(0, len(recordings))
        for done, (recording, found) in enumerate(results, start=1):
            show(done, len(recordings))
            if isinstance(found, UserError):
                print_status(f"{recording.name}: {found.problem}")
                entries.append({"file": recording.name, "error": found.problem})
                continue
            for note in found.notes:
                print_status(f"{recording.name}: {note}")
            entries.append(described(recording.name, found) if as_json else {})
            write(recording.name, found)
    if as_json:
        print_json({"texts": entries})
    if any("error" in entry for entry in entries):
        raise typer.Exit(2)


def parse_depth(text: str | None) -> "int | Literal['auto'] | None":
    """The value of `--depth`. Raises UserError."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isdecimal():
        raise UserError("--depth", f"must be a number or auto (got '{text}')")
    return int(text)


def _writer(names: list[str], kind: "Format", out: str | None, *, quiet: bool) -> "Callable[[str, Transcript], None]":
    """A function that writes the transcript of a recording to stdout, or to a file of its own below a folder."""
    from foldray import storage
    from foldray.transcription.formats import output_files, written

    if out is not None:
        files = output_files(names, kind)
        folder = storage.absolute(out)
        storage.check_writable(folder, "--out")
        return lambda name, found: storage.write_bytes(
            storage.join(folder, *files[name].split("/")), written(name, found, kind).encode(errors="backslashreplace")
        )
    if quiet:
        return lambda name, found: None
    if kind in ("srt", "vtt") and len(names) > 1:
        raise UserError("--out", f"name a folder: each of {len(names)} recordings has a {kind} file of its own")
    return lambda name, found: _print(name, found, kind)


def _print(name: str, found: "Transcript", kind: "Format") -> None:
    from foldray.transcription.formats import written

    if kind == "text":
        print_line(f"{name}: {found.text or '(nothing)'}")
        return
    for line in written(name, found, kind).removesuffix("\n").split("\n"):
        print_line(line)
