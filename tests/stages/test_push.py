"""`foldray push` against a real server: what is on the page, what comes back from it, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from foldray import UserError, load_model
from foldray.config.load import build_spec
from foldray.evaluation.provenance import weights_digest
from foldray.results.rows import ResultRow, write_rows
from foldray.training.job import TrainJob
from foldray.training.launch import describe_run
from tests.support.commands import call
from tests.support.hub import Hub, Request
from tests.support.hub_models import TOKEN
from tests.support.rows import row

pytest_plugins = ["tests.support.hub_models", "tests.support.finished_run"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(finished: TrainJob, tmp_path: Path) -> str:
    """A store with a finished run and a result row for each depth."""
    write_rows(str(tmp_path / "store"), scores(finished), [])
    return str(tmp_path / "store")


def scores(job: TrainJob, **fields: object) -> list[ResultRow]:
    plain = {"run_id": "run", "step": 3, "num_words": 1234, "corpus": Path(job.corpus).name} | fields
    return [row(depth=depth, wer=0.5 / depth, cer=0.25 / depth, **plain) for depth in (2, 3, 4)]


@pytest.fixture
def login(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def push(capsys: Capture, store: str, *arguments: str, model: str = "run") -> tuple[int, str, str]:
    """`foldray push` to org/fold; nothing it prints has the token."""
    done = call(capsys, "push", model, "org/fold", "--store", store, *arguments)
    assert TOKEN not in done[1] + done[2]
    return done


def refused(capsys: Capture, store: str, *arguments: str, model: str = "run") -> str:
    code, out, err = push(capsys, store, *arguments, model=model)
    assert (code, out) == (2, ""), err
    (line,) = [each for each in err.splitlines() if not each.startswith("note ")]
    return line


MIT = ("--license", "mit")


# --- There and back --------------------------------------------------------------------------------


@pytest.mark.main
def test_a_pushed_fold_is_the_model_again(
    login: Hub, store: str, spoken: Path, finished: TrainJob, capsys: Capture
) -> None:
    code, out, err = push(capsys, store, *MIT, "--json")
    assert code == 0, err
    told = json.loads(out)
    main = login.repositories["org/fold"].refs["main"]
    assert (told["where"], told["commit"], told["changed"]) == (f"{login.endpoint}/org/fold", main.id, True)
    assert {name: len(content) for name, content in main.files.items() if name != ".gitattributes"} == told["files"]
    assert main.parent
    assert list(main.parent.files) == [".gitattributes"], "all in one commit"
    ours, theirs = load_model(f"{finished.run}/model").state_dict(), load_model("org/fold").state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    wav = str(next(spoken.rglob("*.wav"), None) or next(spoken.rglob("*.flac")))
    for depth in ("2", "4"):
        here = call(capsys, "transcribe", "run", wav, "--depth", depth, "--store", store, "--json")
        there = call(capsys, "transcribe", "org/fold", wav, "--depth", depth, "--store", store, "--json")
        assert json.loads(there[1]) == json.loads(here[1])
    snapshot = Path(next(iter((Path(store).parent / "hf").rglob("config.json")))).parent
    seed = transformers.AutoModelForCTC.from_pretrained(snapshot).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in seed.items() if name in theirs)


@pytest.mark.main
def test_the_same_content_again_makes_no_commit(login: Hub, store: str, capsys: Capture) -> None:
    push(capsys, store, *MIT)
    before = login.repositories["org/fold"].refs["main"]
    code, out, err = push(capsys, store, *MIT)
    assert (code, err) == (0, "")
    assert out == f"{login.endpoint}/org/fold: up to date at commit {before.id[:10]}, nothing was pushed\n"
    assert login.repositories["org/fold"].refs["main"] is before


@pytest.mark.main
def test_another_format_leaves_nothing_of_the_first_and_everything_of_others(
    login: Hub, store: str, capsys: Capture
) -> None:
    push(capsys, store, *MIT)
    repository = login.repositories["org/fold"]
    theirs = {"figure.png": b"png", ".eval_results/theirs.yaml": b"[]"}
    repository.commit(repository.refs["main"].files | theirs)
    code, out, err = push(capsys, store, *MIT, "--format", "int8", "--json")
    assert code == 0, err
    files = repository.refs["main"].files
    assert json.loads(out)["rows"] == 0, "those of the float32 weights are no scores of these"
    assert theirs.items() <= files.items()
    assert "int8.safetensors" in files
    assert not [name for name in files if name.startswith(("model.", "private.", ".eval_results/foldray-"))]
    load_model("org/fold")


def test_a_folder_has_what_the_page_would(hub: Hub, store: str, tmp_path: Path, capsys: Capture) -> None:
    code, out, err = push(capsys, store, *MIT, "-o", str(tmp_path / "page"), "--json")
    assert code == 0, err
    assert hub.requests == []
    files = {
        str(file.relative_to(tmp_path / "page")): file.stat().st_size
        for file in (tmp_path / "page").rglob("*")
        if file.is_file()
    }
    assert files == json.loads(out)["files"]
    assert {"README.md", "fold.json", "export.json", "model.safetensors", "vocab.json"} < set(files)
    assert sorted(name for name in files if name.startswith(".eval_results/"))[0].endswith("-ctc-depth-2.yaml")
    assert "is not a new folder; name one" in refused(capsys, store, *MIT, "-o", str(tmp_path / "page"))


# --- The card --------------------------------------------------------------------------------------


def test_the_card_has_a_results_row_for_each_depth(
    finished: TrainJob, store: str, tmp_path: Path, capsys: Capture
) -> None:
    place = tmp_path / "page"
    assert push(capsys, store, *MIT, "-o", str(place), "--benchmark", "test=org/bench:clean")[0] == 0
    card = ModelCard.load(place / "README.md")
    corpus = Path(finished.corpus).name
    measured = {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert measured == {
        (corpus, "test", f"{metric} at depth {depth}"): round(100 * share / depth, 2)
        for depth in (2, 3, 4)
        for metric, share in (("WER", 0.5), ("CER", 0.25))
    }
    assert (card.data.license, card.data.library_name, card.data.language) == ("mit", "foldray", ["en"])
    table = [line for line in card.text.splitlines() if line.startswith(("| 2 |", "| 3 |", "| 4 |"))]
    scored = "| 1,234 | 1,000 | 4,000 | 100 M | 50 (`cpu`) |"
    assert table[1] == f"| 3 | `{corpus}` | `test` | `ctc` | 16.67 | 8.33 {scored}"
    assert [f"foldray transcribe org/fold hello.wav --depth {depth}\n" in card.text for depth in (2, 3, 4)] == [
        True
    ] * 3
    for name, value in (("run", "run"), ("random seed", "0"), ("steps", "3"), ("training corpus", corpus)):
        assert f"| {name} | `{value}` |" in card.text
    files = sorted((place / ".eval_results").iterdir())
    entries = [entry for file in files for entry in parse_eval_result_entries(yaml_of(file))]
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("org/bench", "clean", round(50 / depth, 2)) for depth in (2, 3, 4)
    ]
    assert [re.search(r"depth (\d)", e.notes or "")[1] for e in entries] == ["2", "3", "4"]  # type: ignore[index]


def yaml_of(file: Path) -> list[dict[str, object]]:
    loaded: list[dict[str, object]] = yaml.safe_load(file.read_text())
    return loaded


# --- The licence and the base model ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (b"---\nlicense: cc-by-4.0\n---\n", "cc-by-4.0"),
        (b"# Base\n", "--license: set it, such as --license apache-2.0: the page of org/base states none"),
        (None, "--license: set it, such as --license apache-2.0; that of the base model can't be read: org/base is"),
    ],
)
def test_the_licence_is_that_of_the_base_model(
    card: bytes | None, told: str, login: Hub, finished: TrainJob, store: str, capsys: Capture
) -> None:
    spec = json.loads(Path(finished.run, "spec.json").read_text())
    spec["model"]["checkpoint"] = "org/base"
    Path(finished.run, "spec.json").write_text(json.dumps(spec))
    if card:
        login.add("org/base", {"README.md": card, "config.json": b"{}"})
    if told.startswith("--"):
        assert refused(capsys, store).startswith(told)
        assert "org/fold" not in login.repositories
        return
    assert push(capsys, store)[0] == 0
    written = ModelCard(login.repositories["org/fold"].refs["main"].files["README.md"].decode())
    assert (written.data.license, written.data.base_model) == (told, "org/base")
    assert "Training started from [org/base](https://huggingface.co/org/base)." in written.text
    assert "The terms of org/base hold too." in written.text


# --- What is refused -------------------------------------------------------------------------------

WRONG = {
    "name": (["push", "run", "fold"], "OWNER/NAME: 'fold' is not OWNER/NAME, such as my-org/an4-fold"),
    "path": (["push", "run", "../fold"], "OWNER/NAME: '../fold' is not OWNER/NAME"),
    "three": (["push", "run", "a/b/c"], "OWNER/NAME: 'a/b/c' is not OWNER/NAME"),
    "format": (["push", "run", "org/fold", "--format", "onnx"], "--format: must be one of seed, int8 (got 'onnx')"),
    "licence": (["push", "run", "org/fold", "--license", "a b"], "--license: 'a b' is not an identifier of the hub"),
    "none": (["push", "run", "org/fold"], "--license: set it, such as --license apache-2.0: no model on the hub is"),
    "bench": (["push", "run", "org/fold", *MIT, "--benchmark", "x"], "--benchmark: 'x' is not [SPLIT=]OWNER/NAME:TASK"),
    "split": (["push", "run", "org/fold", *MIT, "--benchmark", "dev=a/b:c"], "--benchmark: must name the split of one"),
    "model": (["push", "nosuch", "org/fold", *MIT], "nosuch: is neither a finished run nor a model folder"),
    "private": (["push", "run", "org/fold", "--private", "-o", "x"], "--private: is for a page on the hub, and --out"),
    "owner": (["push", "run", "else/fold", *MIT], "else/fold: your token may not write there; give it the right to"),
    "unknown": (
        ["push", "run", "org/fold", "--license", "mi"],
        'org/fold: the hub does not take the card ("license" must be',
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_one_line_and_makes_no_page(kind: str, login: Hub, store: str, capsys: Capture) -> None:
    arguments, problem = WRONG[kind]
    code, out, err = call(capsys, *arguments, "--store", store)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith(problem)
    assert login.repositories == {}


def test_without_a_token_that_may_write_it_is_one_line(
    hub: Hub, store: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    line = "org/fold: needs a token that may write; log in with `hf auth login` or HF_TOKEN, or write the page to a"
    assert refused(capsys, store, *MIT) == f"{line} folder with -o DIR"
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    told = refused(capsys, store, *MIT)
    assert told.startswith("org/fold: the hub does not take your token; log in again with `hf auth login` or HF_TOKEN")
    assert "hf_of_somebody_else" not in told
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(capsys, store, *MIT).startswith("org/fold: can't be pushed to while HF_HUB_OFFLINE is set; unset it")


def test_a_page_of_others_is_not_written_over_unless_asked(login: Hub, store: str, capsys: Capture) -> None:
    repository = login.add("org/fold", {"pytorch_model.bin": b"", "a.txt": b"a", "README.md": b"# Mine\n"})
    before = repository.refs["main"]
    line = "org/fold: has files that foldray did not write (a.txt, pytorch_model.bin); choose another name, or give"
    assert refused(capsys, store, *MIT) == f"{line} --force"
    line = f"org/fold: is public already; make it private in {login.endpoint}/org/fold/settings, or leave --private out"
    assert refused(capsys, store, *MIT, "--private") == line
    assert repository.refs["main"] is before
    assert push(capsys, store, *MIT, "--force")[0] == 0
    assert {"a.txt", "fold.json"} < set(repository.refs["main"].files)


@pytest.mark.main
def test_a_private_page_is_read_with_the_token_only(
    login: Hub, store: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert push(capsys, store, *MIT, "--private")[0] == 0
    assert login.repositories["org/fold"].private
    load_model("org/fold")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"MODEL: org/fold is neither a local folder nor a model on the hub \("):
        load_model("org/fold")


def test_a_page_that_changes_meanwhile_stays_as_it_is(login: Hub, store: str, capsys: Capture) -> None:
    push(capsys, store, *MIT)
    repository = login.repositories["org/fold"]

    def change(request: Request) -> None:
        if request.path.endswith("/preupload/main"):
            repository.commit({**repository.refs["main"].files, "new.txt": b"new"})

    login.on_request = change
    told = refused(capsys, store, *MIT, "--format", "int8")
    assert told.startswith("org/fold: was changed while it was written to, and stays as it is; run the same command")
    assert {"new.txt", "model.safetensors"} < set(repository.refs["main"].files)


def test_without_the_hub_it_is_one_line(login: Hub, store: str, capsys: Capture) -> None:
    login.close()
    line = f"org/fold: the hub ({login.endpoint}) can't be reached ("
    assert refused(capsys, store, *MIT).startswith(line)


@pytest.mark.parametrize("name", ["transcribe", "evaluate"])
def test_a_page_without_a_fold_is_no_model_to_run(name: str, login: Hub, store: str, capsys: Capture) -> None:
    login.add("org/stock", {"config.json": b"{}", "model.safetensors": b""})
    file = ["a.wav"] if name == "transcribe" else []
    code, out, err = call(capsys, name, "org/stock", *file, "--store", store)
    assert (code, out) == (2, "")
    assert err == (
        "MODEL: org/stock is on the hub, but not a fold (fold.json is missing); fold it with `foldray train … "
        "model.checkpoint=org/stock`\n"
    )


def test_a_card_of_others_is_not_written_over_unless_asked(login: Hub, store: str, capsys: Capture) -> None:
    theirs = {"README.md": b"---\nlicense: mit\n---\n# Mine\n", "tokenizer.json": b"{}", "model.safetensors": b"x"}
    repository = login.add("org/fold", {"README.md": theirs["README.md"]})
    line = "org/fold: has files that foldray did not write (README.md); choose another name, or give --force"
    assert refused(capsys, store, *MIT) == line
    repository.commit({"README.md": b"---\nlicense: mit\n---\n"})
    assert push(capsys, store, *MIT)[0] == 0, "the hub's own card has metadata only"
    login.add("org/fold", theirs)
    code, out, err = push(capsys, store, *MIT, "--force", "--format", "int8", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, ["model.safetensors"]), err
    assert login.repositories["org/fold"].refs["main"].files["tokenizer.json"] == b"{}"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_local_folder_is_no_page(
    elsewhere: bool, login: Hub, finished: TrainJob, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: Capture,
) -> None:  # fmt: skip
    spec = json.loads(Path(finished.run, "spec.json").read_text())
    spec["model"]["checkpoint"] = "checkpoints/whisper-tiny"
    Path(finished.run, "spec.json").write_text(json.dumps(spec))
    (tmp_path / "checkpoints" / "whisper-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if elsewhere:  # pushed where the folder is not
        facts = describe_run(build_spec(spec, "spec"), finished.corpus)
        Path(finished.run, "run.json").write_text(json.dumps(facts))
        monkeypatch.chdir("/")
    assert refused(capsys, store).endswith("no model on the hub is known that run started from")
    assert push(capsys, store, *MIT)[0] == 0
    written = ModelCard(login.repositories["org/fold"].refs["main"].files["README.md"].decode())
    assert written.data.base_model is None
    assert "| started from | `a local checkpoint` |" in written.text
    assert "whisper-tiny" not in written.text


def test_a_depth_is_on_the_card_once_after_its_export_was_scored(
    finished: TrainJob, store: str, tmp_path: Path, capsys: Capture
) -> None:
    digest = weights_digest(load_model(f"{finished.run}/model"))
    later = scores(finished, run_id=f"run-{digest}", created="2026-02-01T00:00:00.000+00:00")
    write_rows(store, [{**each, "wer": 0.75} for each in later], [])
    assert push(capsys, store, *MIT, "-o", str(tmp_path / "page"))[0] == 0
    card = ModelCard.load(tmp_path / "page" / "README.md")
    shown = [(each.metric_name, each.metric_value) for each in card.data.eval_results if each.metric_type == "wer"]
    assert shown == [(f"WER at depth {depth}", 75.0) for depth in (2, 3, 4)]
