"""`python -m benchmarks transcribe`: a corpus transcribed as a job, next to a bare loop and stock transformers.

    ours      foldray transcribe --format parquet: Ray Data, words with times and confidences, shards
    bare      two processes with the same model: soundfile, features, a forward pass a batch, greedy texts as JSON lines
    pipeline  two processes with transformers' pipeline(batch_size=8) and the unrolled depth, texts as JSON lines

Batches of ours and of the bare loop hold 16 s of padded audio of like lengths; the pipeline gets clips in the same
order. Sides alternate. Each has two processes of one thread. Start-up (interpreters, imports, weights, Ray) is measured
by a run over a few utterances and subtracted.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.measure import BenchmarkResult, Figures, check_extras, run_process

if TYPE_CHECKING:
    from foldray.transcription.recogniser import Recogniser

SIDES = ("ours", "bare", "pipeline")
PROCESSES, BATCH_SECONDS, BATCH_SIZE, FIRST = 2, 16.0, 8, 8
DEPTHS = (6, 12)
MINUTES = 60.0
CONFIG = {
    "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "conv_dim": [128] * 7,
    "do_stable_layer_norm": True, "feat_extract_norm": "layer",
}  # fmt: skip

Row: TypeAlias = dict[str, Any]
"""A line of train.jsonl, with the URI of its audio."""


def bench_transcribe(
    rounds: int = 3, minutes: float = MINUTES, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> BenchmarkResult:
    """Audio hours an hour of each side, medians over the rounds."""
    from foldray.data.builtin import write_builtin_corpus

    check_extras("espeakng_loader")
    measured: dict[str, list[Figures]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch, "voices")
        write_builtin_corpus(corpus, train_minutes=minutes, test_minutes=0.2)
        _write_models(Path(scratch))
        for done, side in enumerate(SIDES * rounds):
            with tempfile.TemporaryDirectory() as out:
                measured[side].append(run_process("benchmarks.transcribe", side, str(corpus), scratch, out))
            on_progress(done + 1, len(SIDES) * rounds)
    median = {side: _medians(figures) for side, figures in measured.items()}
    speed = {side: figures["hours_per_hour"] for side, figures in median.items()}
    return {
        "name": "transcribe",
        "ours": median["ours"],
        "peer": {f"{side}, {key}": value for side in SIDES[1:] for key, value in median[side].items()},
        "ratio": {f"ours to {side}, audio hours an hour": speed["ours"] / speed[side] for side in SIDES[1:]},
        "shape": f"{minutes:g} min of FLAC, a wav2vec 2.0 of width {CONFIG['hidden_size']} at depth {DEPTHS[-1]}, "
        f"float32, {PROCESSES} processes of one thread, {rounds} rounds",
    }


def _medians(rounds: list[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def _write_models(folder: Path) -> None:
    """A fold with random weights, and its deepest depth as a stock model."""
    from transformers import Wav2Vec2ForCTC

    from foldray import FoldPlan, fold, unroll
    from foldray.config.model import ModelSpec
    from foldray.models.processor import save_processor
    from foldray.models.save_load import load_model, save_model
    from foldray.models.stock import write_random_checkpoint
    from foldray.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(["<pad>", "<unk>", "|", "'", *map(chr, range(ord("A"), ord("Z") + 1))])
    write_random_checkpoint(ModelSpec(family="wav2vec2", config=CONFIG), DEPTHS[0], tokenizer, 0, folder / "seed")
    model = fold(Wav2Vec2ForCTC.from_pretrained(folder / "seed"), FoldPlan(DEPTHS[0], DEPTHS))
    save_model(model, folder / "fold", tokenizer)
    stock = unroll(load_model(folder / "fold"), DEPTHS[-1])
    stock.save_pretrained(folder / "stock")
    save_processor(stock, tokenizer, folder / "stock")


def _rows(corpus: str) -> list[Row]:
    lines = Path(corpus, "train.jsonl").read_text().splitlines()
    rows = [{**row, "audio": f"{corpus}/{row['audio']}"} for row in map(json.loads, lines)]
    return sorted(rows, key=lambda row: float(row["duration"]))


def _without_startup(run: Callable[[str, list[Row]], None], rows: list[Row]) -> Figures:
    """Time a run, less the time of a run over a few utterances."""
    began = time.perf_counter()
    run("first", rows[:FIRST])
    startup = time.perf_counter() - began
    began = time.perf_counter()
    run("all", rows)
    seconds = time.perf_counter() - began - startup
    hours = sum(row["duration"] for row in rows[FIRST:]) / 3600
    return {"hours_per_hour": 3600 * hours / seconds, "seconds": seconds, "startup_s": startup, "hours": hours}


# --- Sides ------------------------------------------------------------------------------------------


def _ours(corpus: str, models: str, out: str) -> Figures:
    from foldray.runtime.ray import start_ray
    from foldray.stages.transcribe_corpus import HowMany, transcribe_corpus

    start_ray(PROCESSES)

    def run(name: str, rows: list[Row]) -> None:
        listed = Path(out, f"{name}.jsonl")
        listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
        transcribe_corpus(f"{models}/fold", out, [str(listed)], f"{out}/{name}", resources=HowMany(workers=PROCESSES))

    return _without_startup(run, _rows(corpus))


def _bare(corpus: str, models: str, out: str) -> Figures:
    def run(name: str, rows: list[Row]) -> None:
        _in_pool(_bare_batch, models, [rows[i : i + size] for i, size in _cut(rows)], f"{out}/{name}")

    return _without_startup(run, _rows(corpus))


def _cut(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Where each batch of at most BATCH_SECONDS of padded audio begins in sorted rows, and its size."""
    cuts, first = [], 0
    for i, row in enumerate(rows):
        if (i + 1 - first) * row["duration"] > BATCH_SECONDS and i > first:
            cuts.append((first, i - first))
            first = i
    return [*cuts, (first, len(rows) - first)]


def _pipeline(corpus: str, models: str, out: str) -> Figures:
    size = 8 * BATCH_SIZE

    def run(name: str, rows: list[Row]) -> None:
        _in_pool(_stock_part, models, [rows[i : i + size] for i in range(0, len(rows), size)], f"{out}/{name}")

    return _without_startup(run, _rows(corpus))


def _in_pool(work: "Callable[[list[Row]], list[str]]", models: str, parts: list[list[Row]], out: str) -> None:
    from multiprocessing import get_context

    start = (work.__name__, models)
    with get_context("spawn").Pool(PROCESSES, _open_models, start) as pool, open(f"{out}.jsonl", "w") as file:
        for part, texts in zip(parts, pool.imap(work, parts, chunksize=1), strict=True):
            for row, text in zip(part, texts, strict=True):
                file.write(json.dumps({"id": row["id"], "text": text}) + "\n")


_opened: Any = None
"""The model of a process of the pool."""


def _open_models(work: str, models: str) -> None:
    global _opened
    import torch

    torch.set_num_threads(1)
    if work == "_bare_batch":
        from foldray.transcription.recogniser import Recogniser

        _opened = Recogniser(f"{models}/fold")
    else:
        from transformers import pipeline

        _opened = pipeline("automatic-speech-recognition", model=f"{models}/stock", batch_size=BATCH_SIZE, device="cpu")


def _bare_batch(rows: list[Row]) -> list[str]:
    """Texts of a batch by the shortest code that gives them."""
    import torch

    from foldray.evaluation.decode import greedy_texts
    from foldray.models.features import extract_features, output_frames
    from foldray.models.fold import set_depths

    recogniser: Recogniser = _opened
    model = recogniser.model
    set_depths(model, DEPTHS[-1])
    clips = [_read(row) for row in rows]
    with torch.inference_mode():
        logits_BTV = model(**extract_features(model, recogniser.extractor, clips)).logits
    frames_B = torch.tensor(output_frames(model, [len(clip) for clip in clips]))
    return greedy_texts(logits_BTV, frames_B, recogniser.tokenizer)


def _stock_part(rows: list[Row]) -> list[str]:
    clips = [{"raw": _read(row), "sampling_rate": 16_000} for row in rows]
    return [found["text"] for found in _opened(clips, batch_size=BATCH_SIZE)]


def _read(row: Row) -> Any:
    """Samples at 16 kHz: the pipeline would start ffmpeg for each file."""
    import soundfile

    from foldray.data.audio import resample

    samples_T, rate = soundfile.read(row["audio"], dtype="float32")
    return resample(samples_T, rate)


if __name__ == "__main__":
    sides: dict[str, Callable[[str, str, str], Figures]] = {"ours": _ours, "bare": _bare, "pipeline": _pipeline}
    print(json.dumps(sides[sys.argv[1]](*sys.argv[2:5])))
