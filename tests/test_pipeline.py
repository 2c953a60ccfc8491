"""The main job on Ray, as a user runs it: real workers, real kills. The slow tier."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import HubertForCTC

from foldray.data.manifest import read_manifest
from foldray.data.text import Units
from foldray.pretrained import write_random_checkpoint
from foldray.recipes import load_recipe
from foldray.results.metrics import read_metrics
from foldray.seeding import load_folded
from tests.conftest import AN4
from tests.test_prepare import damage, ids_in, ids_out

pytestmark = pytest.mark.ray

TINY = [
    "model.config.hidden_size=48", "model.config.num_attention_heads=2", "model.config.intermediate_size=96",
    "fold.depths=[3,6]", "optim.epochs=null", "optim.steps=24", "checkpoint.every_steps=4", "valid.every_steps=12",
]  # fmt: skip


def foldray(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A `foldray` command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "foldray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()  # its Ray goes with it, and leaves the cores to the other tests
        raise
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1, f"{out}\n{err}"
    value: dict[str, Any] = json.loads(out)
    return value


def kill_after(process: subprocess.Popen[str], store: Path, checkpoint: str) -> None:
    """SIGKILL the driver as soon as a checkpoint is whole."""
    wait_for(process, store, checkpoint)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def wait_for(process: subprocess.Popen[str], store: Path, checkpoint: str) -> None:
    for _ in range(3000):
        if list(store.glob(f"runs/*/checkpoints/{checkpoint}-*/manifest.json")):
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def final_weights(trained: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(f"{trained['run']}/model/model.safetensors")


def test_a_killed_run_resumes_bit_equal_and_the_whole_job_reuses_it(own_corpus: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver in the middle; the same command goes on. Damaged audio is quarantined on the way."""
    reasons = damage(own_corpus)
    common = [
        "an4",
        f"corpus.path={own_corpus}",
        "corpus.max_quarantine=0.5",
        "corpus.max_seconds=20",
        "batch.max_duration=20",
        *TINY,
    ]
    whole = finish(foldray("train", *common, f"storage.root={tmp_path / 'whole'}", "--json"))
    assert (whole["step"], whole["resumed_from_step"]) == (24, 0)

    cut = [*common, f"storage.root={tmp_path / 'cut'}"]
    kill_after(foldray("train", *cut), tmp_path / "cut", "step-00000008")
    resumed = finish(foldray("train", *cut, "--json"))
    assert resumed["run_id"] == whole["run_id"]
    assert resumed["step"] == 24
    assert 8 <= resumed["resumed_from_step"] < 24
    ours, theirs = final_weights(resumed), final_weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [record["step"] for record in read_metrics(resumed["run"])] == list(range(1, 25))

    result = finish(foldray("run", *cut, "--json"))
    assert result["run_id"] == whole["run_id"]
    assert [row["depth"] for row in result["rows"]] == [3, 6]
    assert (tmp_path / "cut" / "report" / "index.html").exists()
    assert finish(foldray("run", *cut, "--json")) == result, "a second run reuses the rows of the first"

    corpus = next((tmp_path / "cut" / "corpora").iterdir())
    manifest = read_manifest(str(corpus))
    assert manifest.quarantined == len(reasons)
    assert len(ids_in(own_corpus)) == len(ids_out(str(corpus), manifest)) + manifest.quarantined


def test_a_waveform_model_from_a_stock_checkpoint_on_disk(own_corpus: Path, tmp_path: Path) -> None:
    """Two workers, killed once; then nothing is left but the store, under another name, and `resume` goes on with it.

    The loss falls at every depth, and stock transformers opens the result.
    """
    spec = load_recipe("hubert-tiny")
    stock = tmp_path / "stock"
    units = Units(["<pad>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    write_random_checkpoint(spec.model, spec.fold.num_layers, units, 7, stock)
    assert load_folded(spec.model, str(stock), spec.fold.plan(), units, 0)[2] == [], "nothing starts anew"
    arguments = [
        "hubert-tiny", f"corpus.path={own_corpus}", f"model.checkpoint={stock}",
        f"storage.root={tmp_path / 'store'}", "optim.steps=40", "optim.lr=2e-3", "checkpoint.every_steps=10",
    ]  # fmt: skip
    kill_after(foldray("train", *arguments), tmp_path / "store", "step-00000020")
    shutil.rmtree(stock)
    shutil.rmtree(own_corpus)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    run = next((tmp_path / "elsewhere" / "runs").iterdir())
    trained = finish(foldray("resume", str(run), "scale.loader_threads=2", "--json"))
    assert (trained["run"], trained["run_id"], trained["step"]) == (str(run), run.name, 40)
    assert trained["resumed_from_step"] >= 20
    assert finish(foldray("resume", str(run), "--json"))["resumed_from_step"] == 40
    metrics = read_metrics(trained["run"])
    for depth in map(str, spec.fold.depths):
        first, last = (sum(r["ctc"][depth] for r in part) / 5 for part in (metrics[:5], metrics[-5:]))
        assert last < 0.8 * first, f"depth {depth}"
    model, report = HubertForCTC.from_pretrained(f"{trained['run']}/model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == spec.fold.num_layers


@pytest.mark.skipif(not AN4.is_dir(), reason="AN4 is not beside the project (../shared/data/an4)")
def test_an4_prepares_whole(tmp_path: Path) -> None:
    summary = finish(foldray("prepare", "an4", f"corpus.path={AN4}", f"storage.root={tmp_path}", "--json"))
    assert (summary["utterances_in"], summary["utterances_out"], summary["quarantined"]) == (1078, 1078, 0)
    assert summary["hours"] == pytest.approx((42.44 + 5.95) / 60, abs=0.01)
    manifest = read_manifest(summary["manifest"].removesuffix("/manifest.json"))
    test = [shard for shard in manifest.shards if shard.split == "test"]
    assert sum(shard.rows for shard in test) == 130


def test_ctrl_c_says_where_the_run_stands(own_corpus: Path, tmp_path: Path) -> None:
    common = ["an4", f"corpus.path={own_corpus}", *TINY, "optim.steps=4000", f"storage.root={tmp_path}", "--json"]
    process = foldray("train", *common)
    wait_for(process, tmp_path, "step-00000008")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert json.loads(out) == {"error": "interrupted", "where": "foldray"}
    assert "interrupted, newest checkpoint: step" in err
    assert err.strip().endswith("stopped; run the same command again to go on")


def test_a_job_entry_point_is_the_same_command() -> None:
    job = subprocess.run(
        [sys.executable, "-m", "pipelines.train", "an4", "corpus.path=/nowhere/at/all", "--json"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert job.returncode == 2
    assert json.loads(job.stdout)["where"] == "corpus.path"
