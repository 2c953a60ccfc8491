"""Text from a stock decoder: the library's greedy generation, at one depth."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from foldray.models.folded_model import FoldedModel
from foldray.models.tokenizer import Tokenizer

TOKENS_PER_SECOND, SPARE_TOKENS = 12, 16
"""Most tokens that are generated for English: three times what fast speech takes. A model at the start of its training
repeats itself until it is stopped. Other scripts may take several tokens a letter: they have all of the decoder."""


@dataclass(frozen=True)
class Generated:
    """The text of an utterance, and whether the decoder ended it; if not, some of the text may be missing.

    Attributes:
        text: The text.
        ended: Whether the end token was generated.
        ids: Tokens of the text, up to the end token.
    """

    text: str
    ended: bool
    ids: tuple[int, ...] = ()


def generate_texts(
    model: FoldedModel, inputs: dict[str, Tensor], tokenizer: Tokenizer, seconds: float, languages: Sequence[str] = ()
) -> list[str]:
    """The texts of `generate`."""
    return [each.text for each in generate(model, inputs, tokenizer, seconds, languages)]


@torch.no_grad()
def generate(
    model: FoldedModel, inputs: dict[str, Tensor], tokenizer: Tokenizer, seconds: float, languages: Sequence[str] = ()
) -> list[Generated]:
    """Generate the text of each utterance of a batch, greedily.

    Args:
        model: A folded model, set to one depth, or a stock one.
        inputs: What the encoder takes, B utterances.
        tokenizer: The model's, with its special tokens.
        seconds: Length of the longest utterance.
        languages: Their languages; the default one without.
    """
    special = tokenizer.special
    assert special is not None
    batch = len(next(iter(inputs.values())))
    prompts = [special.prompt(each) for each in languages or [""] * batch]
    prompts_BK = torch.tensor(prompts, device=model.device)
    stock: Any = model
    options = copy.deepcopy(stock.generation_config)
    room = special.most - prompts_BK.shape[1]
    if all(prompt == special.prompts[""] for prompt in prompts):
        room = min(room, SPARE_TOKENS + int(TOKENS_PER_SECOND * seconds))
    options.update(
        max_new_tokens=None, max_length=prompts_BK.shape[1] + room, num_beams=1,
        do_sample=False, eos_token_id=special.end, pad_token_id=special.end, return_dict_in_generate=False,
    )  # fmt: skip
    # Whisper's own `generate` takes 30 s only; beneath it is the one that all models have.
    ids_BU: Any = GenerationMixin.generate(stock, **inputs, decoder_input_ids=prompts_BK, generation_config=options)
    rows = ids_BU[:, prompts_BK.shape[1] :].tolist()
    texts = [_text_of(row, special.end) for row in rows]
    return [
        Generated(tokenizer.decode(text), special.end in row, tuple(text))
        for row, text in zip(rows, texts, strict=True)
    ]


def _text_of(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
