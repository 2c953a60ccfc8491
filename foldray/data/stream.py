"""From planned micro-batches to tensors: read rows, decode, features, masks; ahead of the training thread."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foldray import storage
from foldray.data.audio import decode_flac
from foldray.data.epoch import MicroBatch
from foldray.data.manifest import SplitIndex
from foldray.data.text import Units
from foldray.families import family_of
from foldray.models import mel_bins, output_frames, whole_frames
from foldray.processor import build_extractor
from foldray.spec import SAMPLE_RATE, AugmentSpec

CACHE_BYTES = 512 * 2**20
AHEAD = 4
DECODER_INPUTS = "decoder_input_ids"


@dataclass(frozen=True)
class Batch:
    """One micro-batch, ready for the model.

    inputs: keyword arguments of the stock model; frames_B: valid output frames; labels_BU, padded
    with 0; num_labels_B; seconds: audio without padding; targets_BU: for a decoder, the labels and
    an end token.
    """

    inputs: dict[str, Tensor]
    frames_B: Tensor
    labels_BU: Tensor
    num_labels_B: Tensor
    ids: list[str]
    texts: list[str]
    seconds: float
    targets_BU: Tensor | None = None

    @property
    def encoder_inputs(self) -> dict[str, Tensor]:
        """`inputs` without those of a decoder."""
        return {name: tensor for name, tensor in self.inputs.items() if name != DECODER_INPUTS}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        lengths = (self.frames_B.to(device), self.labels_BU.to(device), self.num_labels_B.to(device))
        targets_BU = None if self.targets_BU is None else self.targets_BU.to(device)
        return Batch(inputs, *lengths, self.ids, self.texts, self.seconds, targets_BU)


class RowReader:
    """Rows of a split by position. Keeps the row groups read last, up to `CACHE_BYTES`, still encoded."""

    def __init__(self, index: SplitIndex) -> None:
        self._index = index
        self._groups: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __call__(self, position: int) -> dict[str, Any]:
        """The row (id, audio, text …) at a position of the index."""
        place = int(self._index.shard[position]), int(self._index.row_group[position])
        with self._lock:
            if place not in self._groups:
                self._load(place)
            self._groups.move_to_end(place)
            return self._groups[place][int(self._index.row[position])]

    def _load(self, place: tuple[int, int]) -> None:
        shard, group = place
        uri = storage.join(self._index.corpus, self._index.files[shard])
        found, path = storage.filesystem(uri)
        with found.open_input_file(path) as file:
            rows = pq.ParquetFile(file).read_row_group(group, columns=["id", "audio", "text"]).to_pylist()
        self._groups[place] = rows
        self._held += _size(rows)
        while self._held > CACHE_BYTES and len(self._groups) > 1:
            _, dropped = self._groups.popitem(last=False)
            self._held -= _size(dropped)


def _size(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["audio"]) for row in rows)


class BatchLoader:
    """Turns micro-batches of a split into `Batch`es for one model's features."""

    def __init__(
        self,
        index: SplitIndex,
        model: PreTrainedModel,
        units: Units,
        augment: AugmentSpec | None,
        seed: int,
    ) -> None:
        self._read = RowReader(index)
        self._model = model
        self._extractor = build_extractor(model)
        self._units = units
        self._augment = augment
        self._seed = seed

    def load(self, batch: MicroBatch, epoch: int) -> Batch:
        """One micro-batch; the same arguments give the same tensors."""
        return self.make(self.read(batch), epoch)

    def read(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """The rows of a micro-batch, audio still encoded."""
        return [self._read(int(position)) for position in batch]

    def make(self, rows: list[dict[str, Any]], epoch: int) -> Batch:
        """Tensors of rows: decoded, as features, masked where this loader augments."""
        waveforms = [whole_frames(self._model, decode_flac(row["audio"])) for row in rows]
        inputs = extract_features(self._model, self._extractor, waveforms)
        if self._augment and epoch >= self._augment.from_epoch and "input_features" in inputs:
            for i, row in enumerate(rows):
                valid = int(inputs["attention_mask"][i].sum())
                # Stacked windows are masked as the windows they are made of.
                windows_TF = inputs["input_features"][i, :valid].view(-1, mel_bins(self._model))
                mask_features(windows_TF, self._augment, self._generator(epoch, row["id"]))
        labels = [torch.tensor(self._units.encode(row["text"])) for row in rows]
        targets_BU = None
        if family_of(self._model).kind != "ctc":
            config: Any = self._model.config
            start, end = torch.tensor([config.decoder_start_token_id]), torch.tensor([config.eos_token_id])
            inputs[DECODER_INPUTS] = _pad([torch.cat([start, label]) for label in labels])
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
        )

    def _generator(self, epoch: int, utterance: str) -> np.random.Generator:
        """Randomness that belongs to the utterance: drawn from (seed, epoch, id), whoever loads it.

        torchaudio's masks take torch's global generator, which this thread would share with the
        training thread's dropout.
        """
        digest = hashlib.sha256(f"{self._seed} {epoch} {utterance}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def ahead(self, batches: Iterable[MicroBatch], epoch: int) -> Iterator[Batch]:
        """The batches in order, loaded by a thread that stays up to four ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: list[Future[Batch]] = []
            for batch in batches:
                waiting.append(pool.submit(self.load, batch, epoch))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()


def _pad(sequences: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)


def extract_features(
    model: PreTrainedModel, extractor: Any, waveforms: list[npt.NDArray[np.float32]]
) -> dict[str, Tensor]:
    """The stock model's keyword arguments for a batch of 16 kHz waveforms, padded to the longest.

    The extractor always makes a mask, also where the model was trained without: it would else
    normalise an utterance together with its padding.
    """
    family = family_of(model)
    whole = family.features == "thirty_seconds"
    made = extractor(
        waveforms,
        sampling_rate=SAMPLE_RATE,
        padding="max_length" if whole else True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    inputs = {family.inputs: made[family.inputs]}
    if extractor.return_attention_mask and not whole:
        inputs["attention_mask"] = made["attention_mask"]
    return inputs


WINDOWS_PER_SECOND = 100


def mask_features(windows_TF: Tensor, augment: AugmentSpec, rng: np.random.Generator) -> None:
    """Time and frequency masks of random place and width on (T, F) log-mel windows, in place; zero is their mean."""
    windows, bins = windows_TF.shape
    longest = min(augment.time_mask_seconds * WINDOWS_PER_SECOND, augment.time_mask_share * windows)
    for _ in range(augment.time_masks):
        width = int(rng.uniform(0, longest))
        start = int(rng.integers(0, windows - width + 1))
        windows_TF[start : start + width] = 0
    for _ in range(augment.frequency_masks):
        width = int(rng.integers(0, min(augment.frequency_mask_bins, bins) + 1))
        start = int(rng.integers(0, bins - width + 1))
        windows_TF[:, start : start + width] = 0
