"""Score an export for onnx-asr or sherpa-onnx on a JSONL manifest.

python examples/score_runtime.py ./an4-sherpa PATH/an4/test.jsonl
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import soundfile


def load_recogniser(folder: Path) -> Callable[[Any, int], str]:
    """Open an export with the package that its layout belongs to; the result takes samples and their rate."""
    small = bool(list(folder.glob("*.int8.onnx")))
    ending = ".int8.onnx" if small else ".onnx"
    if (folder / "config.json").exists():
        import onnx_asr

        kind = json.loads((folder / "config.json").read_text())["model_type"]
        model = onnx_asr.load_model(kind, folder, quantization="int8" if small else None)
        options = {"language": "en"} if kind == "whisper" else {}
        return lambda samples, rate: str(model.recognize(samples, sample_rate=rate, **options))

    import sherpa_onnx

    tokens, load = str(folder / "tokens.txt"), sherpa_onnx.OfflineRecognizer
    if (folder / f"encoder{ending}").exists():
        recogniser = load.from_whisper(str(folder / f"encoder{ending}"), str(folder / f"decoder{ending}"), tokens)
    else:
        recogniser = load.from_omnilingual_asr_ctc(str(folder / f"model{ending}"), tokens)

    def recognise(samples: Any, rate: int) -> str:
        stream = recogniser.create_stream()
        stream.accept_waveform(rate, samples)
        recogniser.decode_stream(stream)
        return " ".join(stream.result.text.split())

    return recognise


def main(folder: str, manifest: str) -> None:
    """Print the WER over a manifest whose references are written as the model writes."""
    recognise = load_recogniser(Path(folder))
    rows = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
    files = [Path(manifest).parent / row["audio"] for row in rows]
    texts = [recognise(*soundfile.read(file, dtype="float32")) for file in files]
    scores = jiwer.process_words([row["text"] for row in rows], texts)
    edits = scores.substitutions + scores.deletions + scores.insertions
    words = scores.hits + scores.substitutions + scores.deletions
    print(f"{len(texts)} utterances, {edits} edits in {words} words, WER {100 * edits / words:.2f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
