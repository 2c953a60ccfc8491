"""Tokenizers that were copied beside a folded checkpoint spell what its head means, or are refused."""

import json
from pathlib import Path

import pytest

from foldray import FoldPlan, fold_checkpoint, load_model
from foldray.errors import UserError
from foldray.models.processor import read_tokenizer
from foldray.models.save_load import save_model
from foldray.models.stock_config import find_checkpoint
from tests.support.tiny import tiny_model

LETTERS = [*"ABCDEF"]


def with_vocabulary(folder: Path, vocabulary: dict[str, int], blank: int) -> Path:
    """A folded stock checkpoint and a vocabulary beside it."""
    stock = tiny_model("wav2vec2", vocabulary=9)
    stock.config.pad_token_id = blank
    stock.save_pretrained(folder / "stock")
    save_model(fold_checkpoint(find_checkpoint(str(folder / "stock")), FoldPlan(3, (3,))), folder / "folded")
    (folder / "folded" / "vocab.json").write_text(json.dumps(vocabulary))
    return folder / "folded"


def numbered(*tokens: str) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def test_a_blank_that_is_not_token_0_is_refused(tmp_path: Path) -> None:
    """https://github.com/wenet-e2e/wenet/issues/2329: a decoder with a fixed blank writes garbage."""
    folder = with_vocabulary(tmp_path, numbered(*LETTERS, "|", "[UNK]", "[PAD]"), 8)
    with pytest.raises(
        UserError, match=r"folded: its CTC blank is token 8 \(\[PAD\]\), that of foldray is token 0; name"
    ):
        load_model(folder)


@pytest.mark.parametrize("last", [7, 20])
def test_ids_that_are_used_twice_or_missing_are_refused(last: int, tmp_path: Path) -> None:
    """https://github.com/huggingface/transformers/issues/15275: a bar in the texts gave two tokens one id."""
    folder = with_vocabulary(tmp_path, {**numbered("<pad>", "<unk>", "|", *LETTERS), "F": last}, 0)
    with pytest.raises(UserError, match=r"folded: vocab\.json does not number its tokens 0, 1, 2 and so on; copy"):
        load_model(folder)


def test_added_tokens_without_an_output_change_nothing(tmp_path: Path) -> None:
    """https://github.com/huggingface/transformers/issues/15392: `<s>` and `</s>` were added behind the vocabulary."""
    folder = with_vocabulary(tmp_path, numbered("<pad>", "<unk>", "|", *LETTERS), 0)
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 9, "</s>": 10}))
    load_model(folder)
    assert read_tokenizer(str(folder)).decode([3, 0, 4, 2, 5]) == "AB C"
