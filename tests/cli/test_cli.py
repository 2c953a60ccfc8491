"""The command line: one line and exit code 2 for wrong input, one JSON object for machines."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foldray.results.reader import read_hypotheses, read_rows
from foldray.runtime.terminal import training_bar
from foldray.training.job import TrainJob
from tests.support.commands import call
from tests.support.paths import PROJECT
from tests.support.ports import free_port

pytest_plugins = ["tests.support.finished_run"]

PIPELINES = PROJECT / "pipelines"


WRONG = [
    (["train", "nosuch"], "nosuch", "no such recipe or file"),
    (["train", "an4", "optim.lrr=1"], "optim.lrr", "did you mean 'lr'?"),
    (["train", "an4", "optim.lr=fast"], "optim.lr", "must be a number"),
    (["train", "an4", "fold.depths=[3,2]"], "fold.depths", "ascend"),
    (["train", "an4", "corpus.path=/nowhere/at/all"], "corpus.path", "does not exist"),
    (["run", "quickstart", "storage.root=/proc/nowhere"], "storage.root", "cannot write"),
    (["plan", "quickstart", "model.config.hiden_size=3"], "model.config.hiden_size", "did you mean 'hidden_size'?"),
    (["plan", "quickstart", "model.config.num_hidden_layers=3"], "model.config.num_hidden_layers", "fold.num_layers"),
    (["plan", "quickstart", "model.config.hidden_size=wide"], "model.config", "transformers refuses"),
    (["train", "quickstart", "model.checkpoint=./nowhere"], "model.checkpoint", "./nowhere not found"),
    (["plan", "quickstart", "model.config.hidden_size=145"], "model.config", "gives no model"),
    (["run", "quickstart", "storage.root=s3://key:secret@bucket/x"], "storage.root", "AWS environment"),
    (["run", "an4", "batch.max_duration=3"], "batch.max_duration", "raise one or lower the other"),
    (["results", "/nowhere/at/all"], "STORE", "does not exist"),
    (["results", ".", "lss"], "QUERY", "must be one of ls, pareto, compare, sql"),
    (["report", "/nowhere/at/all"], "/nowhere/at/all", "has no results"),
    (["evaluate", "nosuch", "--store", "/nowhere"], "nosuch", "is neither a finished run nor a model folder"),
    (["train", "an4", "corpus.path=README.md"], "corpus.path", "is a file, not a folder"),
    (["evaluate", "nosuch", "--depths", "a"], "--depths", "not a list of numbers"),
    (["trainn", "an4"], "foldray", "No such command 'trainn'"),
    (["plan"], "foldray", "Missing argument"),
    (["resume", "/nowhere/at/all"], "RUN_URI", "is not a run (STORE/runs/RUN_ID with a spec.json)"),
    (["plan", "an4", "scale.workers=[3,1]"], "scale.workers", "must be a number or a range"),
    (["plan", "an4", "scale.workers=0"], "scale.workers", "from 1 to"),
    (["plan", "an4", "valid.depth=5"], "valid.depth", "set it to one of 3, 4, 6"),
    (["plan", "an4", "optim.ema=0.9", "optim.average=3"], "optim", "set one of them"),
    (["plan", "an4", "optim.warmup=0.7", "optim.hold=0.4"], "optim", "exceed the whole run"),
    (["plan", "an4", "valid.final=best", "optim.average=3"], "valid.final", "best selects one checkpoint"),
    (["plan", "an4", "tracking=[tensorbord]"], "tracking", "did you mean 'tensorboard'?"),
    (["plan", "an4", "model.family=wav2vec2"], "model.family", "start from a recipe of that family"),
    (["plan", "an44"], "an44", "did you mean 'an4'?"),
    (["plan", "an4", "corpus.layout=jsnol"], "corpus.layout", "did you mean 'jsonl'?"),
    (["plan", "an4", "fold.depths=[6,13.5]"], "fold.depths", "13.5 must be a whole number"),
    (["plan", "an4", "optim.lr=.inf"], "optim.lr", "Infinity must be a finite number"),
    (["plan", "an4", "augment.noise_snr_db=[.nan,3]"], "augment.noise_snr_db", "NaN must be a finite number"),
    (["plan", "an4", "batch.max_duration=1e300"], "batch.max_duration", "is out of range"),
    (["plan", "an4", "fold.depths=[3,99999999]"], "fold.depths", "99999999 must be less than or equal to 1000"),
    (["plan", "an4", "scale.workers=[1,2,3]"], "scale.workers", "has too many values"),
    (["train", "quickstart", "corpus.splits=[train,test]", "valid.patience=3"], "valid.patience", "needs a validation"),
]


@pytest.mark.parametrize("arguments", [["evaluate", "nosuch"], ["transcribe", "nosuch", "README.md"]])
def test_a_gpu_that_is_not_there_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = call(capsys, *arguments, "--use-gpu")
    assert (code, out) == (2, "")
    assert err == "--use-gpu: torch finds no GPU on this machine; leave the option out to run on CPUs\n"


@pytest.mark.main
@pytest.mark.parametrize(("arguments", "where", "problem"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], where: str, problem: str
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{where}: ")
    assert problem in err
    assert len(err.strip().splitlines()) == 1
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 2
    assert json.loads(out)["where"] == where
    assert problem in json.loads(out)["error"]


@pytest.mark.usefixtures("without_ray")
def test_a_cluster_that_is_not_there_is_one_line(
    spoken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once; Ray itself would be silent for over five minutes and raise then."""
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked"))
    monkeypatch.setattr("foldray.runtime.ray.CONNECT_SECONDS", 0.5)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    code, out, err = call(capsys, "prepare", "an4", f"corpus.path={spoken}", f"storage.root={tmp_path}", "--json")
    assert code == 2
    told = json.loads(out)
    assert (told["where"], told["error"][:26]) == ("RAY_ADDRESS", "no Ray cluster answers at ")
    assert err.splitlines()[-1].endswith(
        "start one (`ray start --head`), or unset RAY_ADDRESS to use this machine alone"
    )


def test_plan_and_recipes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "plan", "wav2vec2-base-8", "--json")
    value = json.loads(out)
    assert code == 0
    assert round(value["saved_percent"], 1) == 30.0
    assert [d["depth"] for d in value["depths"]] == [8, 10, 12]
    assert value["depths"][2]["path"] == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert value["joint"]["macs_per_audio_second"] > value["depths"][2]["macs_per_audio_second"]
    assert value["joint"]["kept_bytes_per_audio_second"] > 1e6
    assert {"path", "params_stored", "bytes_stored", "macs_per_audio_second"} < set(value["depths"][0])
    code, out, _ = call(capsys, "recipes", "--json")
    assert {"quickstart", "an4", "wav2vec2-tiny", "hubert-tiny"} <= {r["name"] for r in json.loads(out)["recipes"]}


@pytest.mark.parametrize(
    "command",
    ["", "plan", "prepare", "train", "resume", "evaluate", "run", "results", "report", "transcribe", "export"],
)
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = call(capsys, *([command, "--help"] if command else ["--help"]))
    assert code == 0
    assert "foldray run quickstart" in out if not command else f"Example: foldray {command}" in out


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_job_entry_point_is_the_command_of_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    runpy.run_path(str(path), run_name="__main__")
    ours = capsys.readouterr().out
    theirs = call(capsys, path.stem, "--help")[1]
    # How the program was called stands before the name of its command.
    first, second = (said.partition(f" {path.stem} ")[2] for said in (ours, theirs))
    assert first == second != ""
    assert f"Example: foldray {path.stem}" in ours


@pytest.fixture
def scored(capsys: pytest.CaptureFixture[str], finished: TrainJob, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows of the finished run, evaluated at its depths."""
    assert finished
    code, out, err = call(capsys, "evaluate", "run", "--store", str(tmp_path / "store"), "--json")
    assert code == 0, err
    rows: list[dict[str, Any]] = json.loads(out)["rows"]
    return rows


@pytest.mark.main
def test_evaluate_stores_rows_and_hypotheses(scored: list[dict[str, Any]], spoken: Path, tmp_path: Path) -> None:
    utterances = [json.loads(line) for line in (spoken / "test.jsonl").read_text().splitlines()]
    assert [row["depth"] for row in scored] == [2, 3, 4]
    assert [row["num_utterances"] for row in scored] == 3 * [len(utterances)]
    for row in scored:
        assert row["wer"] == (row["substitutions"] + row["deletions"] + row["insertions"]) / row["num_words"]
    assert scored == read_rows(str(tmp_path / "store"))
    hypotheses = read_hypotheses(str(tmp_path / "store"), "run")
    assert len(hypotheses) == 3 * len(utterances)
    assert sum(each["num_words"] for each in hypotheses if each["depth"] == 2) == scored[0]["num_words"]
    assert {each["id"]: each["speaker"] for each in hypotheses} == {each["id"]: each["speaker"] for each in utterances}


@pytest.mark.main
def test_evaluate_takes_other_data_and_untrained_depths(
    capsys: pytest.CaptureFixture[str], scored: list[dict[str, Any]], finished: TrainJob, spoken: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    command = ["evaluate", finished.run, "--data", str(spoken), "--depths", "2,4", "--store", store, "--json"]
    again = json.loads(call(capsys, *command)[1])["rows"]
    assert [(row["depth"], row["wer"]) for row in again] == [(2, scored[0]["wer"]), (4, scored[2]["wer"])]
    assert len(json.loads(call(capsys, "results", store, "ls", "--json")[1])["rows"]) == 5
    code, out, err = call(capsys, "results", store)
    assert code == 0, err
    assert "voices-" in out
    deeper = json.loads(call(capsys, "evaluate", "run", "--depths", "4,6", "--store", store, "--json")[1])["rows"]
    assert [(row["depth"], row["path"], row["trained"]) for row in deeper] == [
        (4, "0 0 1 1", True),
        (6, "0 0 0 1 1 1", False),
    ]
    assert "6 (untrained)" in call(capsys, "results", store)[1]


@pytest.mark.main
def test_a_model_folder_is_known_by_its_weights(
    capsys: pytest.CaptureFixture[str], finished: TrainJob, spoken: Path, tmp_path: Path
) -> None:
    """Folders of the same name without a run: another model is another one, wherever it lies."""
    names = []
    for place, factor in (("a", 1.0), ("b", 0.5), ("c", 1.0)):
        folder = shutil.copytree(Path(finished.run, "model"), tmp_path / place / "model")
        weights = load_file(folder / "model.safetensors")
        save_file({name: factor * tensor for name, tensor in weights.items()}, folder / "model.safetensors")
        options = ("--data", str(spoken), "--depths", "2", "--store", str(tmp_path / "others"), "--json")
        code, out, err = call(capsys, "evaluate", str(folder), *options)
        assert code == 0, err
        names.append(json.loads(out)["run_id"])
    assert names[0] == names[2] != names[1]
    assert json.loads(call(capsys, "results", str(tmp_path / "others"), "--json")[1])["total"] == 2


@pytest.mark.main
def test_a_report_is_one_page_with_the_rows(
    capsys: pytest.CaptureFixture[str], scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, _, err = call(capsys, "report", str(tmp_path / "store"), "-o", str(tmp_path / "page"))
    assert code == 0, err
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"{100 * scored[2]['wer']:.1f} %" in page
    assert page.count('class="example"') == min(10, scored[0]["num_utterances"])
    assert '<script src="http' not in page
    assert '<link rel="stylesheet"' not in page


@pytest.mark.main
@pytest.mark.usefixtures("scored")
def test_transcribe_writes_what_evaluate_decoded(
    capsys: pytest.CaptureFixture[str], spoken: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    decoded = {each["id"]: each["hypothesis"] for each in read_hypotheses(store, "run") if each["depth"] == 2}
    audio = sorted((spoken / "audio" / "test").glob("*.flac"))[0]
    options = ("--store", store, "--depth", "2", "--json")
    out = call(capsys, "transcribe", "run", str(audio), *options)[1]
    (entry,) = json.loads(out)["texts"]
    assert (entry["file"], entry["text"], entry["depth"]) == (str(audio), decoded[audio.stem], 2)
    assert [word["word"] for word in entry["words"]] == entry["text"].split()
    bad = str(tmp_path / "bad.wav")
    Path(bad).write_text('{"no": "audio"}')
    code, out, err = call(capsys, "transcribe", "run", bad, str(audio), *options)
    assert code == 2, err
    assert [list(entry)[:2] for entry in json.loads(out)["texts"]] == [["file", "error"], ["file", "text"]]
    assert err == f"{bad}: can't be used (not_audio: the content is JSON, despite the file name)\n"


REFUSED = [
    (
        ["transcribe", "run", "AUDIO", "--depth", "1"],
        "--depth: depth 1 is shallower than the seed, 2 (trained: 2, 3, 4)",
    ),
    (
        ["evaluate", "run", "--decoding", "joint"],
        "--decoding: joint needs a decoder, which ParakeetForCTC lacks; use ctc",
    ),
    (
        ["evaluate", "run", "--decoding", "magic"],
        "--decoding: must be one of ctc, attention, joint, beam (got 'magic')",
    ),
    (
        ["evaluate", "run", "--decoding", "ctc", "--hotwords", "ANNA"],
        "--decoding: ctc takes no n-gram, hotwords, words or beam; use --decoding beam",
    ),
    (["evaluate", "run", "--lm", "/nowhere.arpa"], "--lm: /nowhere.arpa does not exist"),
    (
        ["transcribe", "run", "AUDIO", "--hotword-weight", "3"],
        "--hotword-weight: has no effect without --hotwords; give --hotwords too",
    ),
]


@pytest.mark.usefixtures("finished")
def test_depths_and_decodings_that_a_model_lacks_are_refused(
    capsys: pytest.CaptureFixture[str], spoken: Path, tmp_path: Path
) -> None:
    audio = str(sorted((spoken / "audio" / "test").glob("*.flac"))[0])
    for command, message in REFUSED:
        arguments = [audio if each == "AUDIO" else each for each in command]
        code, _, err = call(capsys, *arguments, "--store", str(tmp_path / "store"))
        assert code == 2, err
        assert err.splitlines()[-1] == message


def test_training_progress_says_loss_by_depth_speed_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("foldray.runtime.terminal.time.monotonic", lambda: float(next(clock)))
    with training_bar() as show:
        for step, progress in ((1, 0.0), (50, 0.5)):
            show(
                {
                    "step": step,
                    "progress": progress,
                    "ctc": {"3": 2.5, "6": 1.25},
                    "seconds": 2.0,
                    "audio_seconds": 64.0,
                }
            )
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("training   0%  step 1  loss by depth  3: 2.50  6: 1.25  32 audio s/s")
    assert second.startswith("training  50%  step 50")
    assert second.endswith("left")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold.lora_on=[nope]", "fold.private=lora"], "fold.lora_on: a block has no projection 'nope'; it has "),
        (["fold.lora_on=[q_proj]"], "fold.lora_on: has no effect without LoRA; add lora to private"),
        (
            ["fold.private=lora", "fold.lora_rank=5000"],
            "fold.lora_rank: 5000 is not a valid LoRA rank for any",
        ),
        (["fold.private=magic"], "fold.private: 'magic' must be one of norms, statistics, lora, film"),
        (["model.config.num_attention_heads=0"], "model.config: gives no model ("),
        (["model.config.hidden_act=nope"], "model.config: gives no model (KeyError"),
        (["model.config.vocab_size=9"], "model.config.vocab_size: is set by foldray; remove it"),
        (["model.family=wavlm", "fold.paths=[[0,1],[1,0,1]]", "fold.depths=[2,3]"], "fold.paths: wavlm's first layer"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_folds_that_cannot_be_get_one_line_before_anything_starts(
    overrides: list[str], message: str, command: str, capsys: pytest.CaptureFixture[str], spoken: Path, tmp_path: Path
) -> None:
    place = [f"corpus.path={spoken}", f"storage.root={tmp_path / 'store'}"]
    code, out, err = call(capsys, command, "wav2vec2-tiny", *place, *overrides)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(message)
    assert "Traceback" not in err
    assert not (tmp_path / "store" / "corpora").exists()


@pytest.mark.main
def test_a_family_without_ctc_is_trained_from_a_checkpoint_only(
    capsys: pytest.CaptureFixture[str], spoken: Path, tmp_path: Path
) -> None:
    code, out, err = call(capsys, "plan", "wav2vec2-base-8", "model={family: whisper}", "--json")
    assert code == 0, err
    assert json.loads(out)["saved_percent"] > 10
    place = [f"corpus.path={spoken}", f"storage.root={tmp_path / 'store'}"]
    code, _, err = call(capsys, "train", "wav2vec2-base-8", "model={family: whisper}", *place)
    assert code == 2, err
    assert err.startswith("corpus.units: set it to checkpoint: whisper has the tokens of its checkpoint")


@pytest.mark.main
def test_the_readmes_six_lines_fold_a_stock_model(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (PROJECT / "README.md").read_text()
    code, printed = re.findall(r"no Ray, no files:\n\n```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL)[0]
    assert len(list(filter(None, code.splitlines()))) == 6
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1:] == printed.splitlines()
