"""Which audio a run hears, in which batches, and where everything is kept."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from foldray.config.section import Section, without_secret

Layout = Literal[
    "auto", "jsonl", "kaldi", "librispeech", "commonvoice", "folder", "webdataset", "parquet", "lhotse",
]  # fmt: skip
TextProfile = Literal["english", "english_lower", "unicode", "unicode_lower", "as_is"]
BUILTIN_CORPUS = "builtin"
VALIDATION_NAMES = ("valid", "dev", "validation", "val")
"""Names of the validation split in corpora. Everything after the spec calls it by the first."""
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
        description="Splits to prepare; a missing 'valid' is carved from 'train' by speaker. 'dev', 'validation' and "
        "'val' are other names of 'valid'. 'train=A+B' reads the files or sub-folders A and B of the corpus as "
        "'train', such as [train=train-clean-100, test=test-other].",
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

    @field_validator("splits")
    @classmethod
    def _names_validation(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        """Call the validation split of a training corpus 'valid': `dev` becomes `valid=dev`."""
        names = [entry.partition("=")[0] for entry in splits]
        found = [name for name in names if name in VALIDATION_NAMES]
        if "train" not in names or len(found) != 1:  # a corpus to score, or splits that are to stay apart
            return splits
        (name,) = found
        return tuple(_renamed(entry) if entry.partition("=")[0] == name != "valid" else entry for entry in splits)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names before '=' in `splits`."""
        return tuple(entry.partition("=")[0] for entry in self.splits)

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


def _renamed(entry: str) -> str:
    """An entry of `splits` as one of 'valid': `dev` and `dev=A+B` become `valid=dev` and `valid=A+B`."""
    name, named, sources = entry.partition("=")
    return f"valid={sources if named else name}"
