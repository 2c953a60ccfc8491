"""From planned micro-batches to tensors: rows are read, decoded, augmented and converted ahead of training."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foldray.config.augment import AugmentSpec
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.audio import decode_flac
from foldray.data.augment import WaveformAugmenter, change_speed, mask_features, utterance_rng
from foldray.data.epoch import EpochPlan, MicroBatch
from foldray.data.manifest import SplitIndex
from foldray.data.reader import Row, RowReader
from foldray.models.families import family_of
from foldray.models.features import build_extractor, extract_features, feature_windows, output_frames, whole_frames
from foldray.models.tokenizer import Tokenizer

AHEAD = 4
"""Micro-batches that are loaded before training needs them."""

DECODER_INPUTS = "decoder_input_ids"


@dataclass(frozen=True)
class Batch:
    """One micro-batch, ready for the model.

    Attributes:
        inputs: Keyword arguments of the stock model.
        frames_B: Valid output frames of each utterance.
        labels_BU: Labels, padded with 0.
        num_labels_B: Labels of each utterance.
        ids: Ids of the utterances.
        texts: References.
        seconds: Audio without padding.
        targets_BU: For a decoder, the labels and an end token, padded with 0. They follow the prompt in
            `decoder_input_ids`, so they belong to its last U positions.
        languages: Languages of the utterances, "" where the corpus names none.
        longest: Seconds of the longest utterance.
        lengths: Seconds of audio of each utterance.
    """

    inputs: dict[str, Tensor]
    frames_B: Tensor
    labels_BU: Tensor
    num_labels_B: Tensor
    ids: list[str]
    texts: list[str]
    seconds: float
    targets_BU: Tensor | None = None
    languages: tuple[str, ...] = ()
    longest: float = 0.0
    lengths: tuple[float, ...] = ()

    @property
    def encoder_inputs(self) -> dict[str, Tensor]:
        """`inputs` without those of a decoder."""
        return {name: tensor for name, tensor in self.inputs.items() if name != DECODER_INPUTS}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        lengths = {name: getattr(self, name).to(device) for name in ("frames_B", "labels_BU", "num_labels_B")}
        targets_BU = None if self.targets_BU is None else self.targets_BU.to(device)
        return replace(self, inputs=inputs, targets_BU=targets_BU, **lengths)


class BatchLoader:
    """Loads the micro-batches of a split as `Batch`es with one model's features.

    Args:
        index: The split.
        model: Its configuration decides on the features, the frames and the decoder's inputs.
        tokenizer: Turns texts into labels.
        augment: Augmentation, None for none.
        seed: Random seed of the augmentation.
        threads: Threads of `ahead`.
    """

    def __init__(
        self,
        index: SplitIndex,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        augment: AugmentSpec | None,
        seed: int,
        threads: int = 1,
    ) -> None:
        self._read_row = RowReader(index)
        self._model = model
        self.extractor = build_extractor(model)
        self.tokenizer = tokenizer
        self._augment = augment
        self._augment_waveform = WaveformAugmenter(augment) if augment else None
        self._seed = seed
        self._threads = threads

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Declare the rows that will be read, each once, so that none is cached for longer."""
        self._read_row.expect(positions)

    def load(self, batch: MicroBatch, epoch: int, speed: npt.NDArray[np.float64] | None = None) -> Batch:
        """Load one micro-batch; the same arguments give the same tensors. speed: the plan's factors, by position."""
        return self.collate(self.read(batch), epoch, None if speed is None else speed[batch].tolist())

    def read(self, batch: MicroBatch) -> list[Row]:
        """The rows of a micro-batch, audio still encoded."""
        self._read_row.prefetch(batch)
        return [self._read_row(int(position)) for position in batch]

    def collate(self, rows: list[Row], epoch: int, speeds: list[float] | None = None) -> Batch:
        """Decode rows, augment them where this loader does so, and batch them as features and labels."""
        rngs = [utterance_rng(self._seed, epoch, row["id"]) for row in rows]
        factors = speeds or [1.0] * len(rows)
        samples = [self._samples(row, rng, speed) for row, rng, speed in zip(rows, rngs, factors, strict=True)]
        waveforms = [whole_frames(self._model, samples_T) for samples_T in samples]
        inputs = extract_features(self._model, self.extractor, waveforms)
        if self._augment and epoch >= self._augment.from_epoch:
            for i, windows_TF in feature_windows(self._model, inputs):
                mask_features(windows_TF, self._augment, rngs[i])
        labels = [torch.tensor(self.tokenizer.encode(row["text"])) for row in rows]
        targets_BU = None
        if family_of(self._model).attention:
            special, config = self.tokenizer.special, self._model.config
            end = torch.tensor([special.end if special else config.eos_token_id])
            prompts = [
                torch.tensor(special.prompt(row["language"]) if special else [config.decoder_start_token_id])
                for row in rows
            ]
            inputs[DECODER_INPUTS] = _pad([torch.cat(pair) for pair in zip(prompts, labels, strict=True)])
            targets_BU = _pad([torch.cat([label, end]) for label in labels])
        return Batch(
            inputs=inputs,
            frames_B=torch.tensor(output_frames(self._model, [len(w) for w in waveforms])),
            labels_BU=_pad(labels),
            num_labels_B=torch.tensor([len(label) for label in labels]),
            ids=[row["id"] for row in rows],
            texts=[row["text"] for row in rows],
            seconds=sum(map(len, waveforms)) / SAMPLE_RATE,
            targets_BU=targets_BU,
            longest=max(map(len, waveforms)) / SAMPLE_RATE,
            languages=tuple(row["language"] for row in rows),
            lengths=tuple(len(samples_T) / SAMPLE_RATE for samples_T in samples),
        )

    def _samples(self, row: Row, rng: np.random.Generator, speed: float) -> npt.NDArray[np.float32]:
        """Decoded and augmented samples (T,) of a row."""
        samples_T = change_speed(decode_flac(row["audio"]), speed)
        return self._augment_waveform(samples_T, rng) if self._augment_waveform else samples_T

    def share_ahead(self, plan: EpochPlan, rank: int, world: int, first: int = 0) -> Iterator[Batch]:
        """The batches that one of `world` workers loads of an epoch from step `first` on, loaded ahead."""
        expected = plan.positions_of(rank, world, first)
        return self.ahead(plan.share(rank, world, first), plan.epoch, plan.speed, expected)

    def ahead(
        self,
        batches: Iterable[MicroBatch],
        epoch: int,
        speed: npt.NDArray[np.float64] | None = None,
        expected: npt.NDArray[np.int64] | None = None,
    ) -> Iterator[Batch]:
        """The batches in order, loaded by threads that stay up to `AHEAD` ahead and then wait."""
        if expected is not None:
            self.expect(expected)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            for batch in batches:
                self._read_row.prefetch(batch)
                waiting.append(pool.submit(self.load, batch, epoch, speed))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _pad(sequences: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
