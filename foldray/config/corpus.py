"""The corpus section: which audio is prepared, and how."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from foldray.config.section import Section, Uri

Layout = Literal[
    "auto", "jsonl", "kaldi", "librispeech", "commonvoice", "folder", "webdataset", "parquet", "lhotse",
]  # fmt: skip
TextProfile = Literal["english", "english_lower", "unicode", "unicode_lower", "as_is", "whisper", "whisper_basic"]
BUILTIN_CORPUS = "builtin"
VALIDATION_NAMES = ("valid", "dev", "validation", "val")
"""Names of the validation split in corpora. Everything after the spec calls it by the first."""
SAMPLE_RATE = 16_000
"""Sample rate (Hz) of all prepared audio; every speech encoder here was trained at it."""


class CorpusSpec(Section):
    """The corpus, its splits and its text."""

    path: Uri = Field(
        description="Folder or URI of the corpus; 'builtin' is a small corpus that foldray synthesises itself."
    )
    layout: Layout = Field("auto", description="Layout of the corpus; 'auto' detects and reports it.")
    splits: tuple[str, ...] = Field(
        ("train", "valid", "test"),
        description="Splits to prepare; a missing 'valid' is taken from 'train' by speaker. 'dev', 'validation' and "
        "'val' are other names of 'valid'. 'train=A+B' reads the files or sub-folders A and B of the corpus as "
        "'train', such as [train=train-clean-100, test=test-other].",
    )
    audio_root: Uri | None = Field(
        None, description="Folder or URI that relative audio paths refer to; default: the folder of their manifest."
    )
    audio_places: tuple[Uri, ...] = Field(
        (),
        description="Other buckets or folders that rows may name audio in, such as [s3://other/clips]. A corpus in a "
        "bucket may name that bucket, a local one any local file.",
    )
    follow_links: bool = Field(
        False, description="Read manifests and text files that are symbolic links out of the corpus."
    )
    valid_fraction: float = Field(
        0.05, ge=0.0, lt=0.5, description="Share of 'train' used as 'valid' if the corpus has no such split."
    )
    cross_validate: str | None = Field(
        None,
        description="One fold of a cross-validation, such as 2/5: all splits are merged, the second fifth of the "
        "speakers "
        "is 'test', and the others are 'train', from which 'valid' is taken.",
    )
    text: TextProfile = Field(
        "english",
        description="Text normalisation: 'english' keeps A-Z and apostrophe, 'unicode' all letters, marks and digits, "
        "in upper case, or in lower case with '_lower'; 'as_is' only normalises white space; 'whisper' is Whisper's "
        "normaliser of English (contractions, numbers, without its list of spellings), 'whisper_basic' that of other "
        "languages.",
    )
    units: Literal["characters", "bpe", "unigram", "checkpoint"] = Field(
        "characters",
        description="Tokens of the transcripts: characters, sub-words learned from 'train' (byte pairs or a unigram "
        "model), or those of a checkpoint with a decoder, such as Whisper.",
    )
    tokenizer: Uri | None = Field(
        None,
        description="For units=checkpoint, the folder, URI or hub name that has the tokenizer; default: "
        "model.checkpoint.",
    )
    vocab_size: int | None = Field(
        None,
        gt=0,
        validate_default=True,
        description="Number of sub-word tokens, including blank and unknown; null for characters.",
    )
    min_seconds: float = Field(0.3, gt=0, description="Shorter utterances are quarantined.")
    max_seconds: float = Field(30.0, gt=0, description="Longer utterances are quarantined.")
    frame_seconds: float = Field(
        0.04,
        ge=0.001,
        description="Seconds per output frame of the model, 0.02 for wav2vec 2.0 and HuBERT; training text with more "
        "labels "
        "than CTC can align to the frames is quarantined.",
    )
    max_quarantine: float = Field(
        0.05, ge=0, le=1, description="Largest share of quarantined utterances; preparation stops above it."
    )
    shard_minutes: float = Field(15.0, gt=0, description="Minutes of audio per shard.")
    row_group_seconds: float = Field(
        60.0, gt=0, description="Seconds of audio per row group, the unit of reading and shuffling."
    )

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
            raise ValueError(f"'{part}' must be a part and the number of parts of a cross-validation, such as 2/5")
        return part

    @field_validator("units")
    @classmethod
    def _has_texts(cls, units: str, info: ValidationInfo) -> str:
        named = {entry.partition("=")[0] for entry in info.data.get("splits", ("train",))}
        if units in ("bpe", "unigram") and "train" not in named:
            raise ValueError(f"{units} tokens are learned from 'train'; add it to corpus.splits")
        return units

    @field_validator("vocab_size")
    @classmethod
    def _suits_units(cls, vocab_size: int | None, info: ValidationInfo) -> int | None:
        units = info.data.get("units", "characters")
        if units in ("characters", "checkpoint") and vocab_size is not None:
            raise ValueError("applies only to sub-words; set corpus.units=bpe or unigram, or corpus.vocab_size=null")
        if units in ("bpe", "unigram") and vocab_size is None:
            raise ValueError(f"missing; set the number of {units} tokens, such as 1000")
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
