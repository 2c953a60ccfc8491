"""foldray commands, in this process and as processes of their own."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from foldray.cli.main import main
from tests.support.hosts import PATIENCE


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


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


def communicate(process: subprocess.Popen[str]) -> tuple[str, str]:
    """stdout and stderr of a command that ends by itself; one that hangs is killed."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        process.kill()


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = communicate(process)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1, f"{out}\n{err}"
    value: dict[str, Any] = json.loads(out)
    return value
