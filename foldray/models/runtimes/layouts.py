"""A depth as a folder that onnx-asr or sherpa-onnx opens: graphs, tokens, and a README with the lines that run it."""

import json
import logging
from pathlib import Path
from typing import Literal, get_args

from foldray.errors import UserError
from foldray.models.families import family_of
from foldray.models.folded_model import FoldedModel
from foldray.models.runtimes.ctc import MEL_BINS, write_nemo, write_waveform
from foldray.models.runtimes.tokens import (
    ctc_tokens,
    sherpa_ctc_tokens,
    sherpa_whisper_tokens,
    whisper_vocabulary,
)
from foldray.models.runtimes.whisper_files import write_fixed, write_merged
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import CONFIG_FILE, ONNX_FILE, README_FILE, VOCABULARY_FILE

Runtime = Literal["onnx-asr", "sherpa-onnx"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def write_layout(stock: FoldedModel, tokenizer: Tokenizer, folder: Path, runtime: str, precision: str) -> None:
    """Write a stock model for a runtime.

    Args:
        stock: One depth, unrolled.
        tokenizer: Its tokenizer.
        folder: An empty folder.
        runtime: One of RUNTIMES.
        precision: `float32`, or `int8` for matrix products in int8.

    Raises:
        UserError: The runtime has no layout for the family or its features.
    """
    family = family_of(stock)
    if not family.ctc and not family.in_runtimes:
        raise UserError("--format", f"{runtime} reads CTC models and Whisper, not {family.name}; use unrolled")
    ending = ".onnx" if precision == "float32" else f".{precision}.onnx"
    write = {
        ("onnx-asr", True): _nemo, ("onnx-asr", False): _merged_whisper,
        ("sherpa-onnx", True): _omnilingual, ("sherpa-onnx", False): _sherpa_whisper,
    }[runtime, family.ctc]  # fmt: skip
    lines = write(stock, tokenizer, folder, ending)
    if precision == "int8":
        for file in list(folder.glob("*.onnx")):
            quantize(file)
    (folder / README_FILE).write_text(_readme(runtime, lines), encoding="utf-8")


def quantize(file: Path) -> Path:
    """Replace NAME.onnx by NAME.int8.onnx, whose matrix products are in int8 (dynamic quantisation)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = file.with_suffix(".int8.onnx")
    logging.disable(logging.WARNING)  # it recommends a step that shapes of free sizes do not allow
    try:
        quantize_dynamic(file, small, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    file.unlink()
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)
    return small


# Each writes the files of a layout, and returns the lines of Python that load it.


def _nemo(stock: FoldedModel, tokenizer: Tokenizer, folder: Path, ending: str) -> str:
    config = write_nemo(stock, len(tokenizer), folder / ONNX_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
    (folder / "vocab.txt").write_text(ctc_tokens(tokenizer), encoding="utf-8")
    return _onnx_asr("nemo-conformer-ctc", ending)


def _merged_whisper(stock: FoldedModel, tokenizer: Tokenizer, folder: Path, ending: str) -> str:
    text, added = whisper_vocabulary(tokenizer)
    if (bins := stock.config.num_mel_bins) not in MEL_BINS:
        raise UserError("--format", f"onnx-asr computes 80 or 128 mel bins, this model takes {bins}; use sherpa-onnx")
    write_merged(stock, tokenizer, folder / "encoder_model.onnx", folder / "decoder_model_merged.onnx")
    config = {"model_type": "whisper", "num_mel_bins": bins}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
    for name, ids in ((VOCABULARY_FILE, text), ("added_tokens.json", added)):
        (folder / name).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    return _onnx_asr("whisper", ending, ', language="en"')


def _onnx_asr(layout: str, ending: str, option: str = "") -> str:
    quantization = ', quantization="int8"' if "int8" in ending else ""
    return (
        "import onnx_asr\n\n"
        f'model = onnx_asr.load_model("{layout}", "."{quantization})\n'
        f'print(model.recognize("hello.wav"{option}))'
    )


def _omnilingual(stock: FoldedModel, tokenizer: Tokenizer, folder: Path, ending: str) -> str:
    write_waveform(stock, len(tokenizer), folder / ONNX_FILE)
    (folder / "tokens.txt").write_text(sherpa_ctc_tokens(tokenizer), encoding="utf-8")
    return _sherpa(f'from_omnilingual_asr_ctc("model{ending}", "tokens.txt")')


def _sherpa_whisper(stock: FoldedModel, tokenizer: Tokenizer, folder: Path, ending: str) -> str:
    (folder / "tokens.txt").write_text(sherpa_whisper_tokens(tokenizer), encoding="utf-8")
    write_fixed(stock, tokenizer, folder / "encoder.onnx", folder / "decoder.onnx")
    return _sherpa(f'from_whisper("encoder{ending}", "decoder{ending}", "tokens.txt")')


def _sherpa(load: str) -> str:
    return (
        "import sherpa_onnx, soundfile\n\n"
        f"recognizer = sherpa_onnx.OfflineRecognizer.{load}\n"
        'samples, rate = soundfile.read("hello.wav", dtype="float32")\n'
        "stream = recognizer.create_stream()\n"
        "stream.accept_waveform(rate, samples)\n"
        "recognizer.decode_stream(stream)\n"
        "print(stream.result.text)"
    )


def _readme(runtime: str, lines: str) -> str:
    package = "onnx-asr" if runtime == "onnx-asr" else "sherpa-onnx soundfile"
    return (
        f"A speech recogniser for {runtime}, written by foldray. It needs no network.\n\n"
        f"```sh\npip install {package}\n```\n\n```python\n{lines}\n```\n"
    )
