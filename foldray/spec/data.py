"""Which audio a run hears, in which batches, and where everything is kept."""

import os
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from foldray.spec.section import Section, without_secret

Layout = Literal[
    "auto", "jsonl", "kaldi", "librispeech", "commonvoice", "folder", "webdataset", "parquet", "lhotse",
]  # fmt: skip
TextProfile = Literal["english", "english_lower", "unicode", "unicode_lower", "as_is"]
BUILTIN_CORPUS = "builtin"
SAMPLE_RATE = 16_000
"""Samples a second of all prepared audio; every speech encoder here was trained at it."""


class CorpusSpec(Section):
    """Which audio, and what is kept of it."""

    path: str = Field(
        description="A folder or URI with the corpus; 'builtin' is the spoken corpus foldray makes itself."
    )
    layout: Layout = Field("auto", description="How the corpus is laid out; 'auto' looks and says what it took it for.")
    splits: tuple[str, ...] = Field(
        ("train", "valid", "test"),
        description="Splits to prepare; a missing 'valid' is carved from 'train' by speaker. 'train=A+B' takes the "
        "files or sub-folders A and B of the corpus for it, such as [train=train-clean-100, test=test-other].",
    )
    audio_root: str | None = Field(
        None, description="Folder or URI where relative audio paths begin; default: the folder of their manifest."
    )
    valid_fraction: float = Field(
        0.05, ge=0.0, lt=0.5, description="Share of 'train' carved off as 'valid' where there is none."
    )
    cross_validate: str | None = Field(
        None,
        description="A part of a cross-validation, such as 2/5: all that splits name is one corpus, the second of five "
        "parts of its speakers is 'test', and the others are 'train', of which 'valid' is carved.",
    )
    text: TextProfile = Field(
        "english",
        description="Text normalisation: 'english' keeps A-Z and apostrophe, 'unicode' every letter, mark and digit, "
        "both in upper case unless '_lower' follows; 'as_is' only tidies white space.",
    )
    units: Literal["characters", "bpe", "unigram"] = Field(
        "characters",
        description="What transcripts are written in: characters, or sub-words learned from 'train', which are "
        "byte pairs (bpe) or pieces of a unigram model.",
    )
    vocab_size: int | None = Field(
        None,
        gt=0,
        validate_default=True,
        description="How many sub-words, blank and unknown among them; characters are as many as there are.",
    )
    min_seconds: float = Field(0.3, gt=0, description="Shorter utterances are quarantined.")
    max_seconds: float = Field(30.0, gt=0, description="Longer utterances are quarantined.")
    frame_seconds: float = Field(
        0.04,
        ge=0.001,
        description="Audio of one output frame of the models to be trained, 0.02 for wav2vec 2.0 and HuBERT; training "
        "text that CTC can't write in the frames of its audio is quarantined.",
    )
    max_quarantine: float = Field(
        0.05, ge=0, le=1, description="Share of quarantined utterances above which preparation stops."
    )
    shard_minutes: float = Field(15.0, gt=0, description="Minutes of audio in one shard.")
    row_group_seconds: float = Field(
        60.0, gt=0, description="Seconds of audio in one row group, the unit of reading and shuffling."
    )

    @field_validator("path", "audio_root")
    @classmethod
    def _has_no_secret(cls, path: str | None) -> str | None:
        return path and without_secret(path)

    @field_validator("cross_validate")
    @classmethod
    def _is_a_part(cls, part: str | None) -> str | None:
        if part is None:
            return None
        number, _, parts = part.partition("/")
        if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts) and int(parts) > 1):
            raise ValueError(f"'{part}' is no part; say which of how many, such as 2/5")
        return part

    @field_validator("units")
    @classmethod
    def _has_texts(cls, units: str, info: ValidationInfo) -> str:
        named = {entry.partition("=")[0] for entry in info.data.get("splits", ("train",))}
        if units != "characters" and "train" not in named:
            raise ValueError(f"{units} units are learned from 'train'; add it to corpus.splits")
        return units

    @field_validator("vocab_size")
    @classmethod
    def _suits_units(cls, vocab_size: int | None, info: ValidationInfo) -> int | None:
        units = info.data.get("units", "characters")
        if units == "characters" and vocab_size is not None:
            raise ValueError("is for sub-words; say corpus.units=bpe or unigram, or corpus.vocab_size=null")
        if units != "characters" and vocab_size is None:
            raise ValueError(f"missing; say how many {units} units there are to be, such as 1000")
        return vocab_size

    @model_validator(mode="after")
    def _has_a_range(self) -> "CorpusSpec":
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds:g}) must be below max_seconds ({self.max_seconds:g})")
        return self


class StorageSpec(Section):
    """Where everything worth keeping goes."""

    @field_validator("root")
    @classmethod
    def _has_no_secret(cls, root: str) -> str:
        return without_secret(root)

    root: str = Field(
        default_factory=lambda: os.environ.get("FOLDRAY_STORE", "./foldray-store"),
        validate_default=True,
        description="The store: a folder or s3://bucket/prefix. Default: $FOLDRAY_STORE or ./foldray-store.",
    )


class BatchSpec(Section):
    """Duration-bucketed batches; the same utterances make up a step whatever the number of workers."""

    max_duration: float = Field(60.0, gt=0, description="Seconds of padded audio in one micro-batch.")
    per_step: int = Field(2, ge=1, description="Micro-batches in one optimiser step, over all workers together.")
    shortest_first: int = Field(
        0,
        ge=0,
        description="Epochs at the start whose batches go from short to long; eases CTC from scratch.",
    )
    longest_first: bool = Field(
        False, description="The longest audio comes first in every epoch: a run short of memory fails at once."
    )


class AugmentSpec(Section):
    """What is done to audio before the model hears it, drawn anew for each utterance and epoch.

    Masks are SpecAugment (arXiv 1904.08779) on log-mel features; waveform families mask by their own
    `mask_time_prob`.
    """

    speeds: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Speeds that each utterance is heard at, one drawn for each epoch, such as [0.9, 1.0, 1.1] "
        "(Ko et al., Interspeech 2015).",
    )
    volume_db: float = Field(0.0, ge=0, le=40, description="Most decibels that audio is made louder or softer by.")
    noise_share: float = Field(0.0, ge=0, le=1, description="Share of the utterances that noise is added to.")
    noise_snr_db: tuple[float, float] = Field(
        (10.0, 30.0), description="Least and greatest distance of speech above noise, in decibels."
    )
    noise_path: str | None = Field(
        None, description="Folder or URI with noise recordings; default: noise of random colour, made on the spot."
    )
    from_epoch: int = Field(
        0, ge=0, description="First epoch with masks: from the start they keep CTC from scratch on its plateau."
    )
    time_masks: int = Field(0, ge=0, description="Time masks on each utterance.")
    time_mask_seconds: float = Field(0.3, gt=0, description="Longest time mask.")
    time_mask_share: float = Field(0.2, gt=0, le=1, description="Longest time mask as a share of the utterance.")
    frequency_masks: int = Field(0, ge=0, description="Frequency masks on each utterance.")
    frequency_mask_bins: int = Field(12, ge=1, description="Widest frequency mask in mel bins.")

    @field_validator("speeds")
    @classmethod
    def _are_speeds(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        for speed in speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(
                    f"{speed:g} is no speed of speech; give factors from 0.5 to 2, such as [0.9, 1.0, 1.1]"
                )
        return speeds

    @field_validator("noise_snr_db")
    @classmethod
    def _ascends(cls, snr: tuple[float, float]) -> tuple[float, float]:
        if snr[0] > snr[1]:
            raise ValueError(f"the least distance comes first; say [{snr[1]:g}, {snr[0]:g}]")
        return snr

    @field_validator("noise_path")
    @classmethod
    def _has_no_secret(cls, path: str | None) -> str | None:
        return path and without_secret(path)

    @model_validator(mode="after")
    def _uses_its_noise(self) -> "AugmentSpec":
        if self.noise_path and not self.noise_share:
            raise ValueError("noise_path: without a noise_share it does nothing; say augment.noise_share=0.3")
        return self
