"""Sub-word units: learned to the same bytes, exact in size, and the same text in preparation, models and stock code."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from foldray.config.corpus import CorpusSpec
from foldray.config.recipes import load_recipe
from foldray.data import builtin
from foldray.data import prepare as preparation
from foldray.data.corpora import Corpus, _identity
from foldray.data.manifest import Manifest, read_manifest
from foldray.data.shard_plan import select_usable
from foldray.data.text import normalise
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.evaluation.decode import greedy_texts
from foldray.models import train_tokenizer
from foldray.models.families import transformers_class
from foldray.models.processor import read_tokenizer, save_processor
from foldray.models.tokenizer import END, Tokenizer
from foldray.models.train_tokenizer import bpe_tokenizer, character_tokenizer, unigram_tokenizer
from tests.support.corpora import prepare_serially
from tests.support.tiny import tiny_model

BUILTIN = [utterance.text for utterance in islice(builtin.speech_requests("train", 0), 900)]
# The same sentences in letters of another script, vowels as combining marks.
MARKED = [normalise(line.translate(str.maketrans("AEIOUNRST", "ािुेोनरसत")), "unicode") for line in BUILTIN]
LEARNERS = pytest.mark.parametrize("learn", [bpe_tokenizer, unigram_tokenizer])
Learn = Callable[[list[str], int], Tokenizer]


@LEARNERS
@pytest.mark.parametrize(("texts", "size"), [(BUILTIN, 120), (MARKED, 75)], ids=["builtin", "marked"])
def test_every_transcript_comes_back(learn: Learn, texts: list[str], size: int) -> None:
    tokenizer = learn(texts, size)
    assert (len(tokenizer), tokenizer.vocabulary[:2], len(set(tokenizer.vocabulary))) == (
        size,
        ["<pad>", "<unk>"],
        size,
    )
    assert [tokenizer.decode(tokenizer.encode(line)) for line in texts] == texts
    assert sum(len(tokenizer.encode(line)) for line in texts) < sum(map(len, texts))
    assert {0, 1} & {i for line in texts for i in tokenizer.encode(line)} == set()


@LEARNERS
def test_what_was_never_seen_is_unknown_and_ends_are_no_text(learn: Learn) -> None:
    tokenizer = learn(BUILTIN, 100)
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    around = tokenizer.encode("THE XÖX LIGHT")
    assert around.count(1) == 1
    assert tokenizer.decode(around) == "THE XX LIGHT"
    assert tokenizer.decode([0, *tokenizer.encode("THE LIGHT"), 0, len(tokenizer)]) == "THE LIGHT"


@LEARNERS
def test_any_order_and_any_process_learns_the_same_bytes(learn: Learn) -> None:
    tokenizer = learn(BUILTIN, 110)
    assert learn(BUILTIN[::-1], 110) == tokenizer
    code = f"""
import json, sys
from foldray.models.train_tokenizer import {learn.__name__} as learn
sys.stdout.write(learn(json.load(sys.stdin), 110).subwords)"""
    there = subprocess.run([sys.executable, "-c", code], input=json.dumps(BUILTIN).encode(), capture_output=True)
    assert there.stdout.decode() == tokenizer.subwords, there.stderr.decode()


@LEARNERS
def test_a_size_is_exact_or_refused_with_the_nearest_one(learn: Learn) -> None:
    with pytest.raises(
        UserError, match=r"^corpus.vocab_size: 20 is too few for the characters of 'train'; set it to"
    ) as few:
        learn(BUILTIN, 20)
    with pytest.raises(
        UserError, match=r"^corpus.vocab_size: 'train' gives at most \d+ sub-words; set it to \d+"
    ) as many:
        learn(BUILTIN, 5000)
    least = len(set("".join(BUILTIN))) + 2  # the space counts as the word start
    assert str(few.value).endswith(f"set it to {least} or more")
    most = int(str(many.value).split()[-3])
    for size in {*range(least, most, 7), most}:
        assert len(learn(BUILTIN, size)) == size
    for size in (least - 1, most + 1):
        with pytest.raises(UserError):
            learn(BUILTIN, size)


def test_unigram_ids_are_those_of_sentencepiece() -> None:
    tokenizer, reference = unigram_tokenizer(BUILTIN, 110), train_tokenizer._learn_pieces(sorted(BUILTIN), 110)
    assert tokenizer.vocabulary == [reference.id_to_piece(i) for i in range(110)]
    assert [tokenizer.encode(line) for line in BUILTIN] == [reference.encode(line) for line in BUILTIN]


# --- Preparation -----------------------------------------------------------------------------------


def spec_for(corpus: Path, kind: str, **fields: Any) -> CorpusSpec:
    return CorpusSpec(path=str(corpus), shard_minutes=0.2, units=kind, vocab_size=40, **fields)  # type: ignore[arg-type]


def transcripts(folder: str, manifest: Manifest) -> dict[str, tuple[str, str]]:
    """Split and text of every utterance by id."""
    rows = [(s.split, row) for s in manifest.shards for row in pq.read_table(Path(folder, s.file)).to_pylist()]
    return {row["id"]: (split, row["text"]) for split, row in rows}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_labels_are_counted_in_units_of_train(kind: str, own_corpus: Path, tmp_path: Path) -> None:
    folder, manifest = prepare_serially(spec_for(own_corpus, kind), tmp_path / "store")
    assert read_manifest(folder).tokenizer == manifest.tokenizer
    assert len(manifest.vocabulary) == 40
    said = transcripts(folder, manifest)
    learn = {"bpe": bpe_tokenizer, "unigram": unigram_tokenizer}[kind]
    assert manifest.tokenizer == learn([line for split, line in said.values() if split == "train"], 40)
    index = pq.read_table(f"{folder}/index.parquet").to_pylist()
    assert len(index) == manifest.utterances_out
    for entry in index:
        line = said[entry["id"]][1]
        assert entry["num_labels"] == len(manifest.tokenizer.encode(line)) <= len(line)
    before = {file: file.stat().st_mtime_ns for file in Path(folder).rglob("*")}
    assert prepare_serially(spec_for(own_corpus, kind), tmp_path / "store") == (folder, manifest)
    assert {file: file.stat().st_mtime_ns for file in Path(folder).rglob("*")} == before


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_killed_preparation_ends_with_the_same_bytes(
    kind: str, own_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_for(own_corpus, kind)
    whole, _ = prepare_serially(spec, tmp_path / "whole")
    real, written = preparation.write_shard, []

    def dies_at_the_third(task: preparation.ShardTask, folder: str) -> dict[str, Any]:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.file)
        return real(task, folder)

    monkeypatch.setattr(preparation, "write_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare_serially(spec, tmp_path / "cut")
    monkeypatch.undo()
    resumed, _ = prepare_serially(spec, tmp_path / "cut")
    names = {str(file.relative_to(whole)) for file in Path(whole).rglob("*") if file.is_file()}
    assert {"manifest.json", "index.parquet"} < names
    assert all(Path(whole, name).read_bytes() == Path(resumed, name).read_bytes() for name in names)


def test_a_size_there_cannot_be_is_refused_before_any_audio_is_read(own_corpus: Path, tmp_path: Path) -> None:
    spec = spec_for(own_corpus, "bpe").model_copy(update={"vocab_size": 5000})
    with pytest.raises(UserError, match=r"corpus.vocab_size: 'train' gives at most"):
        prepare_serially(spec, tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_units_are_part_of_a_corpus() -> None:
    said = [Utterance("a", "train", "/c/a.flac", "HELLO", "/c/train.jsonl:1", "anna", "en", 1.5, bytes=9)]
    kinds: list[dict[str, Any]] = [{}, {"units": "bpe", "vocab_size": 40}, {"units": "bpe", "vocab_size": 41}]
    kinds.append({"units": "unigram", "vocab_size": 40})
    assert len({_identity(said, "/c", CorpusSpec(path="/c", **kind)) for kind in kinds}) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.units=bpe"], r"^corpus\.vocab_size: missing; set the number of bpe tokens"),
        (
            ["corpus.vocab_size=100"],
            r"^corpus\.vocab_size: applies only to sub-words; set corpus\.units=bpe or unigram",
        ),
        (["corpus.units=words"], r"^corpus\.units: 'words' must be one of characters, bpe, unigram"),
        (["corpus.units=bpe", "corpus.vocab_size=0"], r"^corpus\.vocab_size: 0 must be greater than 0"),
        (
            ["corpus.units=unigram", "corpus.vocab_size=100", "corpus.splits=[test]"],
            r"^corpus\.units: unigram tokens are learned from 'train'; add it to corpus\.splits",
        ),
    ],
)
def test_what_does_not_go_together_gets_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe("an4", overrides)
    assert "\n" not in str(caught.value)


# --- Beside a model --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parakeet", "wav2vec2-bert", "wav2vec2", "conformer"])
@pytest.mark.parametrize("kind", ["characters", "bpe", "unigram"])
def test_stock_code_reads_the_same_text_from_a_saved_model(kind: str, name: str, tmp_path: Path) -> None:
    learned = {"bpe": lambda: bpe_tokenizer(BUILTIN, 90), "unigram": lambda: unigram_tokenizer(BUILTIN, 90)}
    tokenizer = learned.get(kind, lambda: character_tokenizer(BUILTIN))()
    model: Any = tiny_model(name)
    model.config.save_pretrained(tmp_path)
    save_processor(model, tokenizer, tmp_path)
    assert read_tokenizer(str(tmp_path)) == tokenizer
    stock = transformers_class("AutoTokenizer").from_pretrained(tmp_path)
    assert (stock.pad_token_id, stock.unk_token_id) == (0, 1)
    if name == "conformer":
        assert stock.convert_tokens_to_ids(END) == stock.eos_token_id == len(tokenizer)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1, len(tokenizer), (40, 30), generator=generator)
    ids_BT[ids_BT == 1] = 0  # no model writes <unk>: what it learned from has none
    ids_BT[torch.rand(ids_BT.shape, generator=generator) < 0.3] = 0
    logits_BTV = torch.nn.functional.one_hot(ids_BT, len(tokenizer)).float()
    ours = greedy_texts(logits_BTV, torch.full((40,), 30), tokenizer)
    theirs = stock.batch_decode(logits_BTV.argmax(-1))
    # The stock character tokenizer keeps a second space where a word is empty.
    assert [" ".join(line.split()) for line in theirs] == ours if kind == "characters" else theirs == ours
    if kind != "characters":
        assert stock(BUILTIN[:50], add_special_tokens=False).input_ids == [
            tokenizer.encode(line) for line in BUILTIN[:50]
        ]
        assert stock.batch_decode(ids_BT, skip_special_tokens=True) == ours


def test_a_vocabulary_is_read_as_it_was_saved_whatever_its_texts_hold(tmp_path: Path) -> None:
    """Words with the usual boundary, with special tokens and with characters that JSON escapes."""
    model: Any = tiny_model("wav2vec2")
    odd = [
        "namaste |",
        "a | b |",
        "<pad> <unk> <s>",
        "\u2581a|",
        '"\\ \u0301\u200d \x01',
        "\u2028x \U0001f600 <sos/eos>",
    ]
    for number, lines in enumerate([[line] for line in odd] + [odd]):
        texts = [normalise(line, "as_is") for line in lines]
        tokenizer = character_tokenizer(texts)
        save_processor(model, tokenizer, tmp_path / str(number))
        read = read_tokenizer(str(tmp_path / str(number)))
        assert (read, read.digest) == (tokenizer, tokenizer.digest)
        stock = transformers_class("AutoTokenizer").from_pretrained(tmp_path / str(number))
        ids = [[i for label in tokenizer.encode(line) for i in (label, 0)] for line in texts]
        assert stock.batch_decode(ids) == [line.replace("|", "||") for line in texts]


@pytest.mark.parametrize("token", ["<pad>", "<unk>", "<sos/eos>", "\u2581"])
def test_reserved_strings_in_sub_word_texts_are_set_aside(token: str) -> None:
    row = Utterance("a", "train", "/c/a.flac", f"SAY {token}", "/c/train.jsonl:1", bytes=9)
    for units, reasons in (("bpe", ["bad_text"]), ("characters", [])):
        fields: dict[str, Any] = {"units": units, "vocab_size": 40 if units == "bpe" else None}
        spec = CorpusSpec(path="/c", text="as_is", **fields)
        _, quarantine, _ = select_usable(Corpus("c-1", "/c", "jsonl", [row]), spec)
        assert [entry["reason"] for entry in quarantine] == reasons
