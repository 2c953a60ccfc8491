"""A loaded model that turns clips into tokens with times and probabilities, at any of its depths."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError
from foldray.evaluation.beam_options import BeamOptions
from foldray.evaluation.decode import Decoding, check_decoding, recognise, search_or, usual_decoding
from foldray.evaluation.generate import generate
from foldray.models.families import family_of
from foldray.models.features import build_extractor, extract_features, output_frames, whole_frames
from foldray.models.fold import ctc_logits, set_depths, stack_of
from foldray.models.processor import read_tokenizer
from foldray.models.row_depths import ctc_by_row
from foldray.models.save_load import load_model
from foldray.models.windows import usual_seconds
from foldray.results.auto_depth import read_auto
from foldray.transcription.decoder_times import TimedTokens, time_tokens, without_silence
from foldray.transcription.words import FramePath, ctc_tokens, geometric_mean

Samples = npt.NDArray[np.float32]


CHUNK_SECONDS = 20.0
"""Longest chunk. Attention's memory grows with the square of it."""
SHORTEST_CHUNK = 4.0
"""Shorter chunks cut words where nobody pauses."""


CPU_BATCH_SECONDS, BATCH_SECONDS = 16.0, 60.0
"""Padded audio in one batch. What a CPU works on stays in its cache: 16 s are 1.3 times as fast as 60 s."""


@dataclass(frozen=True)
class Piece:
    """The text of a clip from a decoder.

    Attributes:
        text: The text.
        ended: Whether the decoder ended it; if not, some may be missing.
        tokens: Its tokens with times and probabilities; None unless asked for.
    """

    text: str
    ended: bool = True
    tokens: TimedTokens | None = None


@dataclass(frozen=True)
class DepthChoice:
    """Depths to try in order, and the confidence from which one counts; the last always does."""

    depths: tuple[int, ...]
    threshold: float


class Recogniser:
    """A folded model with its tokenizer, set up for inference.

    Args:
        folder: Folder or URI of a folded model.
        decoding: How to decode; by default greedy CTC where the model has it, else its decoder.
        beam: Options of the beam search.
        device: Device of torch.

    Attributes:
        folder: The model's folder.
        depths: The planned depths, shallowest first.
        samples_per_frame: Samples between two CTC frames.

    Raises:
        UserError: The folder has no whole folded model, or the model can't decode so.

    Example:
        >>> recogniser = Recogniser("./foldray-store/runs/an4-1a2b3c4d5e/model")
        >>> recogniser.frame_paths([samples_T], depth=6)[0].ids_T.shape  # samples_T: 2 s
        (50,)
    """

    def __init__(
        self, folder: str, decoding: Decoding | None = None, beam: BeamOptions | None = None, device: str = "cpu"
    ) -> None:
        self.folder = folder
        self.model = load_model(folder)
        module: nn.Module = self.model  # transformers wraps `to` without its types
        module.to(device)
        self.tokenizer = read_tokenizer(folder)
        self.decoding: Decoding = decoding or usual_decoding(self.model)
        check_decoding(self.model, self.decoding)
        self._search = search_or(self.decoding, beam, self.tokenizer)
        self.extractor = build_extractor(self.model)
        self.depths = stack_of(self.model).plan.depths
        short, long = output_frames(self.model, [5 * SAMPLE_RATE, 10 * SAMPLE_RATE])
        self.samples_per_frame = round(5 * SAMPLE_RATE / (long - short))

    @property
    def is_ctc(self) -> bool:
        """Whether text comes from greedy CTC, frame by frame."""
        return self.decoding == "ctc"

    @property
    def has_times(self) -> bool:
        """Whether words get times: from the frames of greedy CTC, or the attention of a stock decoder."""
        return self.is_ctc or self.tokenizer.special is not None

    @property
    def longest(self) -> float:
        """Longest clip in seconds that the model takes; infinite where only memory bounds it."""
        return float(self.extractor.chunk_length) if family_of(self.model).fixed_length else float("inf")

    @property
    def batch_seconds(self) -> float:
        """How much padded audio to run at once."""
        return CPU_BATCH_SECONDS if self.model.device.type == "cpu" else BATCH_SECONDS

    @property
    def chunk_seconds(self) -> float:
        """The longest chunk to run at once: as long as the utterances of training, if that is known."""
        usual = usual_seconds(self.model.config)
        return CHUNK_SECONDS if usual is None else min(max(usual, SHORTEST_CHUNK), CHUNK_SECONDS)

    def choice(self, depth: int | Literal["auto"] | None) -> DepthChoice:
        """The depths to try, the deepest by default.

        Raises:
            UserError: The depth has no path, or `auto` has no calibration or no probabilities to go by.
        """
        if depth == "auto":
            if not self.has_times:
                raise UserError("--depth", f"{self.decoding} decoding gives no confidence for auto; use ctc")
            auto = read_auto(self.folder, self.depths)
            return DepthChoice(auto.depths, auto.threshold)
        chosen = self.depths[-1] if depth is None else depth
        set_depths(self.model, [chosen])
        return DepthChoice((chosen,), 0.0)

    def check_language(self, language: str) -> None:
        """Raise UserError for a language that a multilingual model has no token for; "" is none."""
        special = self.tokenizer.special
        if language and special and special.lacks(language):
            known = ", ".join(sorted(filter(None, special.prompts)))
            raise UserError("--language", f"the model has no '{language}'; use one of {known}")

    def takes(self, samples: int) -> bool:
        """Whether a clip of so many samples gives the model a frame."""
        return output_frames(self.model, [samples])[0] >= 1

    def frame_paths(self, clips: Sequence[Samples], depth: int) -> list[FramePath]:
        """The best token of each CTC frame and its probability, for each clip of samples (T,)."""
        return self.frame_paths_at(clips, [depth])[0]

    @torch.no_grad()
    def frame_paths_at(self, clips: Sequence[Samples], depths: Sequence[int]) -> list[list[FramePath]]:
        """As `frame_paths` at several depths, whose shared blocks run once: a list of all clips for each depth."""
        set_depths(self.model, depths)
        inputs, frames = self._inputs(clips)
        paths = _best_paths(ctc_logits(self.model(**inputs)), frames * len(depths))
        return [paths[i * len(clips) : (i + 1) * len(clips)] for i in range(len(depths))]

    def paths_by_row(
        self, clips: Sequence[Samples], depths: Sequence[int], on_path: Callable[[int, FramePath], None]
    ) -> None:
        """The same with a depth for each clip, in one batch: clips share the beginning of their depths' paths.

        Args:
            clips: Samples (T,) at 16 kHz.
            depths: The depth of each clip.
            on_path: Called with each clip's number and its path, as soon as its depth is reached.
        """
        inputs, frames = self._inputs(clips)

        def hand_out(rows: Sequence[int], logits_RTV: Tensor) -> None:
            paths = _best_paths(logits_RTV, [frames[row] for row in rows])
            for row, path in zip(rows, paths, strict=True):
                on_path(row, path)

        ctc_by_row(self.model, inputs, depths, self._shortest, hand_out)

    @functools.cached_property
    def _shortest(self) -> dict[str, Tensor]:
        return self._inputs([np.zeros(SAMPLE_RATE // 2, np.float32)])[0]

    def decoded(
        self, clips: Sequence[Samples], depth: int, languages: Sequence[str] = (), *, times: bool = False
    ) -> list[Piece]:
        """The text of each clip of samples (T,) from the model's decoder.

        Args:
            clips: Samples at 16 kHz.
            depth: The depth to run.
            languages: Language code of each clip, for the prompts of multilingual models.
            times: Time the tokens too, which takes another pass of the decoder.
        """
        set_depths(self.model, [depth])
        inputs, frames = self._inputs(clips)
        if not self.tokenizer.special:
            frames_B = torch.tensor(frames)
            texts = recognise(self.model, inputs, frames_B, self.tokenizer, self._search)
            return [Piece(text) for text in texts]
        seconds = max(map(len, clips)) / SAMPLE_RATE
        found = generate(self.model, inputs, self.tokenizer, seconds, languages)
        if not times:
            return [Piece(each.text, each.ended) for each in found]
        lengths = [len(clip) / SAMPLE_RATE for clip in clips]
        prompts = [self.tokenizer.special.prompt(each) for each in languages or [""] * len(clips)]
        timed = time_tokens(self.model, inputs, prompts, [each.ids for each in found], lengths, frames)
        heard = [without_silence(tokens, clip) for tokens, clip in zip(timed, clips, strict=True)]
        return [Piece(each.text, each.ended, tokens) for each, tokens in zip(found, heard, strict=True)]

    def text_of(self, path: FramePath) -> str:
        """The text of a clip's frames."""
        return self.tokenizer.decode([token.id for token in ctc_tokens(path, 1.0)])

    def confidence(self, found: FramePath | Piece) -> float:
        """Geometric mean of the probabilities of a clip's tokens; 1 for none."""
        tokens = ctc_tokens(found, 1.0) if isinstance(found, FramePath) else found.tokens or []
        return geometric_mean([token.probability for token in tokens])

    def _inputs(self, clips: Sequence[Samples]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """What the encoder takes, and the valid output frames of each clip."""
        whole = [whole_frames(self.model, clip) for clip in clips]
        frames = output_frames(self.model, [len(clip) for clip in whole])
        if min(frames) < 1:
            raise UserError("audio", f"a clip of {min(map(len, whole)) / SAMPLE_RATE:.3f} s gives the model no frame")
        inputs = extract_features(self.model, self.extractor, whole)
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}, frames


def _best_paths(logits_NTV: Tensor, frames: Sequence[int]) -> list[FramePath]:
    best_NT, ids_NT = logits_NTV.float().softmax(-1).max(-1)
    rows = zip(ids_NT.cpu().numpy(), best_NT.cpu().numpy(), frames, strict=True)
    return [FramePath(ids_T[:count], best_T[:count]) for ids_T, best_T, count in rows]
