"""The doctor: what is right is called right, what is wrong is named with its mend, and nothing is left behind."""

import json
from pathlib import Path

import pytest

from foldray import doctor, storage
from foldray.doctor import look_at_node
from tests.test_cli import call
from tests.test_jobs import free_port


def test_a_node_that_is_ready(tmp_path: Path) -> None:
    root, mark = str(tmp_path), str(tmp_path / ".mark")
    storage.write_bytes(mark, b"")
    found = {check["name"]: check for check in look_at_node(root, mark, gpus=0)}
    assert {name: check["ok"] for name, check in found.items()} == {"devices": True, "storage": True, "audio": True}
    assert "bfloat16" in found["devices"]["found"]
    assert found["audio"]["found"].startswith("wav, flac, ogg, mp3 decoded")
    assert [entry.name for entry in tmp_path.iterdir()] == [".mark"]


def test_a_node_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not see the driver's folder; its disk is full; it has fewer GPUs than Ray was told."""
    root = str(tmp_path)
    alone = {check["name"]: check for check in look_at_node(root, f"{root}/.mark", gpus=99)}
    assert [name for name, check in alone.items() if not check["ok"]] == ["devices", "storage"]
    assert "Ray counts 99 GPUs here" in alone["devices"]["found"]
    assert "use s3:// or one that all nodes mount" in alone["storage"]["mend"]
    storage.write_bytes(f"{root}/.mark", b"")
    monkeypatch.setattr(doctor, "LEAST_FREE", 2**60)
    (full,) = (check for check in look_at_node(root, f"{root}/.mark", gpus=0) if not check["ok"])
    assert "MiB left; free some" in full["mend"]
    (nowhere,) = (check for check in look_at_node("/proc/x", "/proc/x/.mark", gpus=0) if not check["ok"])
    assert nowhere["mend"].startswith("storage.root: cannot write to /proc/x")


def test_what_is_wrong_is_said_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    wrong = ["corpus.path=/nowhere", "model.checkpoint=./nowhere", f"storage.root={tmp_path / 'store'}"]
    code, out, err = call(capsys, "doctor", "an4", *wrong)
    assert code == 1
    table = [line.split() for line in out.splitlines() if not line.startswith(" ")]  # long ones are wrapped
    assert [line[:2] for line in table[1:]] == [
        ["packages", "ok"], ["storage", "ok"], ["ray", "MEND"], ["model", "MEND"], ["corpus", "MEND"],
        ["tracking", "ok"],
    ]  # fmt: skip
    said = [line for line in err.splitlines() if not line.startswith("looking")]
    assert said[0].startswith(f"ray: start a cluster at RAY_ADDRESS={address}")
    assert said[1].startswith("model: model.checkpoint: ./nowhere is not there")
    assert said[2].startswith("corpus: corpus.path: /nowhere is no folder")
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))

    code, out, _ = call(capsys, "doctor", "--store", str(tmp_path / "store"), "--json")
    value = json.loads(out)
    assert (code, value["ok"]) == (1, False)
    assert [(check["name"], check["ok"]) for check in value["checks"]] == [
        ("packages", True), ("storage", True), ("ray", False),
    ]  # fmt: skip


def test_packages_other_than_needed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99", "no-such-package>=1", "numpy>=1", "wandb>=99 ; extra == 'wandb'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needed)
    check = doctor._packages()
    assert not check.ok
    assert "torch>=99 (2" in check.found
    assert "no-such-package>=1 (missing)" in check.found
    assert "numpy" not in check.found
    assert "wandb" not in check.found
