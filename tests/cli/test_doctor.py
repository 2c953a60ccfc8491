"""The doctor: what is right is called right, what is wrong is named with its fix, and nothing is left behind."""

import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from foldray import storage
from foldray.cli import doctor
from foldray.cli import node_checks as doctor_node
from foldray.cli.node_checks import check_node, versions
from foldray.config.recipes import load_recipe
from tests.support.commands import call
from tests.support.ports import free_port


@pytest.fixture
def mark(tmp_path: Path) -> str:
    """What the driver leaves in the store `tmp_path`."""
    storage.write_bytes(str(tmp_path / ".mark"), b"")
    return str(tmp_path / ".mark")


def at_node(
    root: Path | str, mark: str | None, gpus: float = 0, corpus: str | None = None
) -> dict[str, dict[str, Any]]:
    """What a node says, by check."""
    return {check["name"]: check for check in check_node(str(root), mark, gpus, versions(), corpus)}


def test_a_node_that_is_ready(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_node, "MIN_FREE_BYTES", 0)
    around = dict(os.environ)
    found = at_node(tmp_path, mark, corpus=str(tmp_path))
    assert list(found) == ["packages", "devices", "storage", "audio", "corpus"]
    assert all(check["ok"] for check in found.values())
    assert "bfloat16" in found["devices"]["found"]
    assert found["audio"]["found"].startswith("wav, flac, ogg, mp3 decoded")
    assert [entry.name for entry in tmp_path.iterdir()] == [".mark"]
    assert dict(os.environ) == around


def test_a_node_that_is_not(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not see the driver's folder nor the corpus; it has fewer GPUs than Ray was told; its disk is full."""
    alone = at_node(tmp_path / "own", mark.replace(".mark", "own/.mark"), gpus=99, corpus="/nowhere")
    assert [name for name, check in alone.items() if not check["ok"]] == ["devices", "storage", "corpus"]
    assert "Ray counts 99 GPUs here" in alone["devices"]["found"]
    assert "use s3:// or one that all nodes mount" in alone["storage"]["fix"]
    assert "use s3:// or a folder that all nodes mount" in alone["corpus"]["fix"]
    assert not (tmp_path / "own").exists()
    assert at_node("/proc/x", None)["storage"]["fix"].startswith("storage.root: cannot write to /proc/x")
    monkeypatch.setattr(doctor_node, "MIN_FREE_BYTES", 2**60)
    assert "MiB left; free some space" in at_node(tmp_path, mark)["storage"]["fix"]
    (other,) = (
        each for each in check_node(str(tmp_path), mark, 0, {"torch": "1.0"}, None) if each["name"] == "packages"
    )
    assert not other["ok"]
    assert other["found"].endswith("(the driver has 1.0)")


@pytest.mark.parametrize(
    ("scale", "nodes", "ok", "said"),
    [
        ({"workers": 2}, [{"CPU": 2}], True, "2 workers and validation need 2 CPU"),
        ({"workers": 3}, [{"CPU": 2}], False, "need 3 CPU; add nodes"),
        ({"workers": [1, 9]}, [{"CPU": 1}], True, "1 workers"),
        ({"use_gpu": True}, [{"CPU": 8, "GPU": 1}], False, "need 2 CPU, 2 GPU"),
        ({"use_gpu": True, "resources_per_worker": {"GPU": 0.5}}, [{"CPU": 8, "GPU": 1}], True, "2 CPU, 1 GPU"),
        ({"use_gpu": True, "resources_per_worker": {"GPU": 2}}, [{"CPU": 8, "GPU": 2}], False, "2 CPU, 4 GPU"),
        ({"use_gpu": True, "validation_resources": {"GPU": 1}}, [{"CPU": 8, "GPU": 2}], False, "2 CPU, 3 GPU"),
        (
            {"resources_per_worker": {"CPU": 4}},
            [{"CPU": 2}] * 4,
            False,
            "no single node has what one worker needs, 4 CPU",
        ),
    ],
)
def test_what_workers_take_is_counted(
    scale: dict[str, Any], nodes: list[dict[str, float]], ok: bool, said: str
) -> None:
    spec = load_recipe("an4", [f"scale.{name}={json.dumps(value)}" for name, value in scale.items()])
    check = doctor.cluster_check(spec, "2", [{**node, "memory": 1e9, "node:1": 1} for node in nodes], None)
    assert check.ok == ok
    assert said in (check.found if ok else check.fix)
    assert "memory" not in check.found


@pytest.mark.main
@pytest.mark.usefixtures("without_ray")
def test_what_is_wrong_is_said_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    wrong = ["corpus.path=/nowhere", "model.config.hidden_size=145", f"storage.root={tmp_path / 'store'}"]
    code, out, err = call(capsys, "doctor", "an4", *wrong)
    assert code == 1
    table = [line.split() for line in out.splitlines() if not line.startswith(" ")]  # long ones are wrapped
    assert [line[:2] for line in table[1:]] == [
        ["packages", "ok"], ["storage", "ok"], ["ray", "FIX"], ["model", "FIX"], ["corpus", "FIX"],
        ["tracking", "ok"],
    ]  # fmt: skip
    said = [line for line in err.splitlines() if not line.startswith("checking")]
    assert said[0].startswith(f"ray: RAY_ADDRESS: no Ray cluster answers at {address} (")
    assert said[1].startswith("model: model.config: gives no model")
    assert said[2].startswith("corpus: corpus.path: /nowhere does not exist")
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))

    code, out, _ = call(capsys, "doctor", "--store", str(tmp_path / "store"), "--json")
    value = json.loads(out)
    assert (code, value["ok"]) == (1, False)
    assert [(check["name"], check["ok"]) for check in value["checks"]] == [
        ("packages", True), ("storage", True), ("ray", False),
    ]  # fmt: skip


@pytest.mark.main
@pytest.mark.usefixtures("without_ray")
def test_a_package_that_is_missing_is_named_and_the_rest_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name == "transformers":
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    code, out, _ = call(capsys, "doctor", "--store", str(tmp_path), "--json")
    packages, store, ray = json.loads(out)["checks"]
    assert (code, packages["ok"], store["ok"], ray["ok"]) == (1, False, True, False)
    assert re.fullmatch(r"install what foldray requires: transformers\S+ \(missing\)", packages["fix"])


def test_packages_other_than_needed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99", "no-such-package>=1", "numpy>=1", "wandb>=99 ; extra == 'wandb'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needed)
    fix = doctor._check_packages().fix
    assert "torch>=99 (2" in fix
    assert "no-such-package>=1 (missing)" in fix
    assert "numpy" not in fix
    assert "wandb" not in fix


def test_without_an_installation_the_folders_own_file_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = importlib.metadata.requires("foldray")
    assert listed

    def not_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", not_installed)
    assert set(map(Requirement, doctor._requirements())) == {
        each for each in map(Requirement, listed) if "extra" not in str(each.marker)
    }


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_store_with_a_secret_is_refused_and_not_said(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3://key:hunter2secret@bucket/x"
    monkeypatch.setenv("FOLDRAY_STORE", secret if given == "environment" else "")
    option = ["--store", secret] if given == "option" else []
    for arguments in (["doctor", *option], *([["doctor", "an4"], ["run", "an4"]] if not option else [])):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, "")
        assert "contains credentials" in err
        assert "hunter2" not in err


def test_a_recipe_says_where_its_store_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "doctor", "an4", "--store", "./x")
    assert code == 2
    assert err.startswith("--store: applies only without a recipe; set storage.root=")
