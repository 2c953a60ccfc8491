"""Tiny stock checkpoints with a decoder and a tokenizer of their own, and corpora prepared with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from foldray.config.load import build_spec
from foldray.config.spec import RunSpec
from foldray.training.job import TrainJob
from tests.support.corpora import prepare_serially

END, START, ENGLISH, GERMAN = "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>"
TRANSCRIBE, QUIET, FIRST_TIME = "<|transcribe|>", "<|notimestamps|>", "<|0.00|>"
SPECIAL = (END, START, ENGLISH, GERMAN, TRANSCRIBE, QUIET, FIRST_TIME)


def byte_level(size: int = 300) -> Tokenizer:
    """A small byte-level BPE with Whisper's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" one two three four five six seven", " red green blue"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def spaced(size: int = 300) -> Tokenizer:
    """A small BPE that marks the beginnings of words, with Moonshine's special tokens first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(fallback)
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator(["one two three four five six seven", "red green blue"] * 3, trainer)
    values = json.loads(tokenizer.to_str())
    # Bytes are text; the trainer puts them into the vocabulary only as special tokens.
    values["added_tokens"] = [token for token in values["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(values))


def write_moonshine(folder: Path, layers: int = 3) -> Path:
    """Write a tiny random Moonshine as a stock folder; returns it."""
    tokenizer = spaced()
    torch.manual_seed(0)
    config = MoonshineConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, encoder_num_hidden_layers=layers,
        decoder_num_hidden_layers=layers, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.2, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = MoonshineForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(decoder_start_token_id=1, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_whisper(folder: Path, layers: int = 3, *, multilingual: bool = False, seconds: int = 12) -> Path:
    """Write a tiny random Whisper with a window of so many seconds as a stock folder; returns it."""
    tokenizer = byte_level()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=32, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=50 * seconds, max_target_positions=64, init_std=0.2, eos_token_id=ids[END],
        bos_token_id=ids[END], pad_token_id=ids[END], decoder_start_token_id=ids[START],
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    options = {"no_timestamps_token_id": ids[QUIET], "is_multilingual": multilingual}
    if multilingual:
        languages = {token: ids[token] for token in (ENGLISH, GERMAN)}
        options |= {"lang_to_id": languages, "task_to_id": {"transcribe": ids[TRANSCRIBE]}}
    # Not the one that the model made from its configuration: that one loses its fields when it is read.
    starts = {"decoder_start_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[END]}
    model.generation_config = GenerationConfig(**starts, **options, max_length=64)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=seconds).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "WhisperTokenizer", "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def spec_for_whisper(checkpoint: Path, source: str = "unused", **sections: Any) -> RunSpec:
    """A short training of a fold of `write_whisper`."""
    values = {
        "name": "tiny",
        "corpus": {"path": source, "max_seconds": 12, "units": "checkpoint", "text": "english_lower"},
        "model": {"family": "whisper", "checkpoint": str(checkpoint)},
        "fold": {"num_layers": 2, "depths": [2, 3], "decoder": {"num_layers": 2, "depths": [2, 3]}},
        "optim": {"lr": 1e-3, "epochs": 3},
        "batch": {"max_duration": 12, "per_step": 3},
        "precision": "float32",
        "checkpoint": {"every_steps": 3},
    }
    return build_spec({**values, **sections}, "test")


def job_for_whisper(source: Path, folder: Path, **sections: Any) -> TrainJob:
    """A job on a spoken corpus that is prepared with the checkpoint's tokens, without Ray."""
    checkpoint = folder / "whisper"
    if not checkpoint.exists():
        write_whisper(checkpoint)
    spec = spec_for_whisper(checkpoint, str(source), **sections)
    prepared, _ = prepare_serially(spec.corpus, folder / "store")
    return TrainJob(spec, str(folder / "run"), str(prepared), str(checkpoint))


def again(job: TrainJob, run: Path) -> TrainJob:
    """The same job in another run."""
    return dataclasses.replace(job, run=str(run))
