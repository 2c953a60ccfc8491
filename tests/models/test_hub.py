"""Models by their hub names, as users have them: read over HTTP, and one line where they can't be."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from foldray import FoldPlan, fold_checkpoint
from tests.support.hub import Hub, Request, read_files
from tests.support.hub_models import PLAN, TOKEN, assert_equal, pickled, refusal
from tests.support.tiny import tiny_model

pytest_plugins = ["tests.support.hub_models"]


# --- Models that load ------------------------------------------------------------------------------


def test_a_model_on_the_hub_folds_as_its_folder_does_and_is_copied_once(hub: Hub, stock: Path) -> None:
    hub.add("org/model", stock)
    assert_equal(fold_checkpoint("org/model", PLAN), fold_checkpoint(stock, PLAN))
    copied = hub.downloads()
    assert sorted(Path(path).name for path in copied) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    fold_checkpoint("org/model", PLAN)
    assert hub.downloads() == copied


def test_a_new_commit_is_read_whole_and_one_load_never_mixes_two(hub: Hub, stock: Path, tmp_path: Path) -> None:
    repository = hub.add("org/model", stock)
    fold_checkpoint("org/model", PLAN)
    other = tiny_model("wav2vec2", 4)
    other.save_pretrained(tmp_path / "other")
    repository.commit(read_files(stock) | read_files(tmp_path / "other"))
    model = fold_checkpoint("org/model", FoldPlan(4, (4,)))
    assert torch.equal(model.lm_head.weight, other.lm_head.weight)
    commits = {path.split("/")[4] for path in hub.downloads()[3:]}
    assert commits == {repository.refs["main"].id}


def test_shards_on_the_hub_load(hub: Hub, stock: Path, tmp_path: Path) -> None:
    transformers.Wav2Vec2ForCTC.from_pretrained(stock).save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(file.name for file in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    hub.add("org/shards", {**read_files(tmp_path), **{n: c for n, c in read_files(stock).items() if "pre" in n}})
    assert_equal(fold_checkpoint("org/shards", PLAN), fold_checkpoint(stock, PLAN))
    assert {Path(path).name for path in hub.downloads()} >= set(shards)


@pytest.mark.main
def test_a_download_that_is_cut_continues_where_it_was(hub: Hub, stock: Path) -> None:
    hub.add("org/model", stock)
    hub.keep = lambda request, size: size // 2 if _is_weights(request) and not request.number else None
    assert_equal(fold_checkpoint("org/model", PLAN), fold_checkpoint(stock, PLAN))
    assert len([path for path in hub.downloads() if path.endswith("model.safetensors")]) == 2


def _is_weights(request: Request) -> bool:
    return request.path.endswith("model.safetensors")


# --- What the hub refuses --------------------------------------------------------------------------


def test_a_gated_model_is_one_line_with_the_way_in(hub: Hub, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", stock, gated=True)
    line = f"model.checkpoint: org/gated is gated on the hub; accept its terms at {hub.endpoint}/org/gated, then log in"
    assert refusal("org/gated") == f"{line} with `hf auth login` or HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert refusal("org/gated").startswith(line)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert_equal(fold_checkpoint("org/gated", PLAN), fold_checkpoint(stock, PLAN))


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_missing_model_is_one_line(token: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    line = f"org/nothing is neither a local folder nor a model on the hub ({hub.endpoint}/org/nothing)"
    assert refusal("org/nothing").startswith(f"model.checkpoint: {line}; correct the name, or log in")


@pytest.mark.parametrize("name", ["a/b/c", "two words", "org/--"])
def test_what_is_no_hub_name_is_one_line(name: str, hub: Hub) -> None:
    assert refusal(name).startswith(f"model.checkpoint: {name} is neither a local folder nor a hub name such as")
    assert not [request for request in hub.requests if "models" in request.path]


def test_a_download_that_never_ends_is_one_line_and_leaves_nothing_half(
    hub: Hub, stock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    hub.add("org/model", stock)
    hub.keep = lambda request, size: (0 if request.number else 1000) if _is_weights(request) else None
    assert refusal("org/model").startswith("model.checkpoint: copying org/model from the hub was cut off (")
    kept = [file for file in (tmp_path / "hf").rglob("*") if file.is_file()]
    assert kept
    assert not [file for file in kept if file.name == "model.safetensors" or file.suffix == ".incomplete"]
    hub.keep = lambda request, size: None
    assert_equal(fold_checkpoint("org/model", PLAN), fold_checkpoint(stock, PLAN))


def test_without_the_hub_the_cache_is_read_and_else_it_is_one_line(
    hub: Hub, stock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("org/model", stock)
    fold_checkpoint("org/model", PLAN)
    hub.close()
    assert_equal(fold_checkpoint("org/model", PLAN), fold_checkpoint(stock, PLAN))
    line = f"model.checkpoint: org/new is not a local folder, and the hub ({hub.endpoint}) can't be reached ("
    assert refusal("org/new").startswith(line)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_equal(fold_checkpoint("org/model", PLAN), fold_checkpoint(stock, PLAN))
    assert "org/new is not a local folder, and not whole in the hub's cache; unset HF_HUB_OFFLINE" in refusal("org/new")
    (weights,) = (tmp_path / "hf").rglob("model.safetensors")
    weights.unlink()
    assert "org/model is not a local folder, and not whole in the hub's cache" in refusal("org/model")


# --- Weights that are refused ----------------------------------------------------------------------


def test_pickled_weights_are_named_with_the_fix_and_never_copied(hub: Hub, stock: Path) -> None:
    hub.add("org/pickled", pickled(read_files(stock)))
    line = "org/pickled has weights in pytorch_model.bin only, not model.safetensors; pickle can run code. Convert them"
    assert refusal("org/pickled").startswith(f"model.checkpoint: {line} where you trust them: from_pretrained(…)")
    assert hub.downloads() == []


TITLE = "Adding `safetensors` variant of this model"


@pytest.mark.main
@pytest.mark.parametrize(
    ("title", "author", "is_current", "is_read"),
    [
        (TITLE, "SFconvertbot", True, True),
        (TITLE, "SFconvertb0t", True, False),
        ("Better weights", "SFconvertbot", True, False),
        (TITLE, "SFconvertbot", False, False),
    ],
)
def test_the_hubs_own_conversion_is_read_and_nobody_elses(
    title: str, author: str, is_current: bool, is_read: bool, hub: Hub, stock: Path
) -> None:
    files = read_files(stock)
    repository = hub.add("org/pickled", pickled(files))
    revision = repository.pull_request(title, author, files | pickled(files))
    if not is_current:
        repository.commit(pickled(files) | {"README.md": b"new weights"})
    if not is_read:
        assert "has weights in pytorch_model.bin only" in refusal("org/pickled")
        return
    with pytest.warns(UserWarning, match=f"reading the hub's conversion by SFconvertbot, {revision}"):
        model = fold_checkpoint("org/pickled", PLAN)
    assert_equal(model, fold_checkpoint(stock, PLAN))


# --- The command line ------------------------------------------------------------------------------


@pytest.mark.main
@pytest.mark.parametrize(
    ("name", "problem"),
    [("org/pickled", "has weights in pytorch_model.bin only"), ("org/gated", "is gated on the hub")],
)
def test_training_from_the_hub_ends_in_one_line_before_it_starts(
    name: str, problem: str, stock: Path, spoken: Path, tmp_path: Path
) -> None:
    with Hub(TOKEN) as hub:
        hub.add("org/pickled", pickled(read_files(stock)))
        hub.add("org/gated", stock, gated=True)
        given = [f"model.checkpoint={name}", "model.config={}", f"corpus.path={spoken}", f"storage.root={tmp_path}/s"]
        done = subprocess.run(
            [sys.executable, "-m", "foldray", "train", "wav2vec2-tiny", *given],
            env={**os.environ, **hub.environment(tmp_path / "hf", "hf_of_somebody_else")},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2, done.stderr
    assert f"model.checkpoint: {name} {problem}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "hf_of_somebody_else" not in done.stderr
    assert not (tmp_path / "s" / "runs").exists()
