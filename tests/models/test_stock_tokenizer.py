"""Tokenizers of stock checkpoints with a decoder: ids, prompts and text are those of transformers."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from foldray import FoldPlan, fold, fold_checkpoint
from foldray.errors import DamagedFileError, UserError
from foldray.models.processor import read_tokenizer
from foldray.models.save_load import save_model
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.models.tokenizer import Tokenizer
from tests.support.seq2seq import write_whisper

PANICS = {
    "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "<unk>": 1, "a": 2}, "unk_token": "<unk>"},
    "decoder": {"type": "Strip", "content": "a", "start": 1, "stop": 1},
}
"""The library panics where a token is shorter than what its decoder strips."""
TEXTS = ["one two three", "a", "zwölf Boxkämpfer", "“quoted” 12 %", ""]


def test_ids_and_text_are_those_of_transformers(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    ours, theirs = read_stock_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(f" {text}", add_special_tokens=False).input_ids
        assert ours.decode(ids) == " ".join(text.split())
    assert ours.special is not None
    specials = [*ours.special.prompt(""), ours.special.end, max(ours._not_text)]
    assert ours.decode([*specials, *ours.encode("one two"), *specials]) == "one two", "languages and times are no text"


def test_prompts_name_the_language(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper", multilingual=True)
    special, known = read_stock_tokenizer(str(folder)).special, AutoTokenizer.from_pretrained(folder)
    assert special is not None
    tokens = {language: known.convert_ids_to_tokens(special.prompt(language)) for language in ("", "de", "de-AT", "xx")}
    english = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    german = [english[0], "<|de|>", *english[2:]]
    assert tokens == {"": english, "de": german, "de-AT": german, "xx": english}


def test_a_saved_model_has_the_tokenizer_it_was_trained_with(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper", multilingual=True)
    tokenizer = read_stock_tokenizer(str(folder))
    model = fold(WhisperForConditionalGeneration.from_pretrained(folder), FoldPlan(3, (3, 4)))
    save_model(model, tmp_path / "folded", tokenizer)
    again = read_tokenizer(str(tmp_path / "folded"))
    assert (again, again.digest) == (tokenizer, tokenizer.digest)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "has no tokenizer.json; write it with transformers"),
        ("{", "tokenizer.json is damaged"),
        ('{"model": {}}', "tokenizer.json is damaged"),
        (json.dumps(PANICS), "tokenizer.json is damaged"),
        ("[" * 50_000, "tokenizer.json is damaged"),
    ],
)
def test_a_checkpoint_without_a_tokenizer_is_one_line(content: str | None, problem: str, tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_stock_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("tokenizer.json", b"\xff\xfe", "is damaged .it is not UTF-8"),
        ("generation_config.json", b"{", "is damaged"),
        ("generation_config.json", b"[]", "is damaged"),
        ("generation_config.json", b'{"lang_to_id": {"<|de|>": 3}}', "lacks a token of the prompt"),
        ("generation_config.json", b'{"eos_token_id": 999999}', "names tokens or lengths that the model does not have"),
        ("generation_config.json", b'{"eos_token_id": []}', "lacks a token of the prompt or the end"),
        ("generation_config.json", b'{"eos_token_id": Infinity}', "lacks a token of the prompt or the end"),
        ("generation_config.json", b'{"decoder_start_token_id": -1}', "names tokens or lengths"),
        ("generation_config.json", b'{"decoder_start_token_id": "x"}', "lacks a token"),
        ("tokenizer_config.json", b"[", "is damaged"),
    ],
)
def test_damaged_files_are_one_line_that_names_them(file: str, content: bytes, problem: str, tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_stock_tokenizer(str(folder))
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_special_tokens_in_a_text_are_found(tmp_path: Path) -> None:
    tokenizer = read_stock_tokenizer(str(write_whisper(tmp_path / "whisper")))
    assert tokenizer.special_in("one two") is None
    assert tokenizer.special_in("one <|endoftext|> two") == "<|endoftext|>"


def test_languages_without_a_prompt_are_known(tmp_path: Path) -> None:
    special = read_stock_tokenizer(str(write_whisper(tmp_path / "many", multilingual=True))).special
    alone = read_stock_tokenizer(str(write_whisper(tmp_path / "one"))).special
    assert special is not None
    assert alone is not None
    assert [special.lacks(language) for language in ("de", "de-AT", "deu")] == [False, False, True]
    assert not alone.lacks("deu"), "a model of one language has one prompt"


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(UserError, match="has 296 tokens, the model 20; take both from one checkpoint"):
        read_stock_tokenizer(str(folder))


def test_a_tokenizer_that_panics_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "subwords.json").write_text(json.dumps(PANICS))
    with pytest.raises(DamagedFileError, match=r"subwords\.json: is damaged"):
        read_tokenizer(str(tmp_path))
    later = Tokenizer(["<pad>", "<unk>", "a"], json.dumps(PANICS))
    with pytest.raises(UserError, match=r"tokenizer: its own rules fail on a text \(.+\); take"):
        later.decode([2])


def test_no_code_that_settings_name_is_written(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["own.T", None]}}))
    tokenizer = read_stock_tokenizer(str(folder))
    save_model(fold_checkpoint(folder, FoldPlan(3, (3,))), tmp_path / "folded", tokenizer)
    written = [file.name for file in (tmp_path / "folded").iterdir() if b"auto_map" in file.read_bytes()]
    assert (written, read_tokenizer(str(tmp_path / "folded")).digest) == ([], tokenizer.digest)
