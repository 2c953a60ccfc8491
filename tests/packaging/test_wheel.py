"""The wheel: built without a warning, complete, and enough by itself."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.main

ROOT = Path(__file__).parents[2]


def checked(*command: str | Path, cwd: Path) -> str:
    """What a command printed; fails with all of it if the command fails."""
    # Neither reaches a user's build: this checkout on the path, and a setting that setuptools warns about.
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel of what git tracks, and everything its build printed."""
    tree = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():  # a file may be deleted and not yet committed
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".")
    printed = checked(*pip, cwd=tree)
    (wheel,) = (tree / "dist").glob("foldray-*.whl")
    return wheel, printed


def test_building_prints_no_warning(built: tuple[Path, str]) -> None:
    # pip's own lines about package indexes that it can't read say nothing about the wheel.
    lines = [line for line in built[1].splitlines() if not line.startswith("WARNING: Location")]
    warned = [line for line in lines if re.search(r"warn|deprecat", line, re.IGNORECASE)]
    assert warned == []


def test_it_holds_every_module_and_data_file_of_the_product_and_nothing_else(built: tuple[Path, str]) -> None:
    names = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "foldray", "pipelines"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert names == {name for name in tracked.stdout.split() if (ROOT / name).exists()}


def test_a_fresh_environment_with_the_wheel_plans_lists_recipes_and_reports(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    """The environment has our dependencies and the wheel; of this checkout it knows nothing."""
    checked(sys.executable, "-m", "venv", "--without-pip", "fresh", cwd=tmp_path)
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    # A path in a .pth file adds the packages there, but not this checkout's editable install, a .pth file of its own.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", site, built[0])
    checked(*install, cwd=tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    where = checked(python, "-c", "import foldray; print(foldray.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    foldray = (python, "-m", "foldray")
    assert "quickstart" in checked(*foldray, "recipes", cwd=tmp_path)
    assert "30.0 % fewer stored parameters" in checked(*foldray, "plan", "wav2vec2-base-8", cwd=tmp_path)
    page = checked(*foldray, "report", ROOT / "docs" / "an4", "run_id~an4-fold-6-12", "-o", "page", cwd=tmp_path)
    assert (tmp_path / page.strip().splitlines()[-1]).read_text().startswith("<!doctype html>"), page
