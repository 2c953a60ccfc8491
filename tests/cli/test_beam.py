"""The beam search from the command line: what it finds, and how its rows say so."""

import json
from pathlib import Path

import pytest

from foldray.results.reader import read_hypotheses, read_rows
from tests.support.commands import call
from tests.support.ngrams import write_arpa

pytest_plugins = ["tests.support.finished_run"]


@pytest.mark.main
@pytest.mark.usefixtures("finished")
def test_rows_name_the_search_and_transcribe_finds_what_they_have(
    capsys: pytest.CaptureFixture[str], spoken: Path, tmp_path: Path
) -> None:
    store, listed = str(tmp_path / "store"), tmp_path / "words.txt"
    listed.write_text("\n".join(json.loads(line)["text"] for line in (spoken / "train.jsonl").open()))
    options = ["--store", store, "--json", "--lm", write_arpa(tmp_path), "--words", str(listed), "--beam", "5"]
    code, out, err = call(capsys, "evaluate", "run", "--depths", "2", *options)
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["decoding"].startswith("beam-5:lm-")
    assert ":words-" in row["decoding"]
    call(capsys, "evaluate", "run", "--depths", "2", "--store", store, "--json")
    assert {each["decoding"] for each in read_rows(store)} == {"ctc", row["decoding"]}
    found = {u["id"]: u["hypothesis"] for u in read_hypotheses(store, "run") if u["decoding"] == row["decoding"]}
    assert len(found) == row["num_utterances"]
    assert set(" ".join(found.values()).split()) <= set(listed.read_text().split())
    audio = sorted((spoken / "audio" / "test").glob("*.flac"))[0]
    code, out, err = call(capsys, "transcribe", "run", str(audio), "--depth", "2", *options)
    assert code == 0, err
    (heard,) = json.loads(out)["texts"]
    assert (heard["file"], heard["text"]) == (str(audio), found[audio.stem])
