"""The package as it is installed: its files, its command, and its use from any folder."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pipelines.cli

ROOT = Path(__file__).parents[2]
PACKAGES = ("clippo_core", "pipelines", "cluster")


@pytest.fixture
def installed() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("clippo-ray")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed in this environment; `make install` does so")


def run(*words: str | Path, folder: Path) -> tuple[int, str]:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path):
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    for name in (*files, "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    pip = (sys.executable, "-m", "pip", "wheel", *options)
    code, said = run(*pip, "--wheel-dir", tmp_path, tmp_path / "source", folder=tmp_path)
    assert code == 0, said
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files


def test_the_installed_command_is_what_python_m_pipelines_calls(installed):
    (command,) = installed.entry_points.select(group="console_scripts")
    assert (command.name, command.load()) == ("clippo", pipelines.cli.main)


def test_packages_are_imported_from_any_folder(installed, tmp_path):
    code, said = run(sys.executable, "-c", f"import {', '.join(PACKAGES)}", folder=tmp_path)
    assert (code, said) == (0, "")


@pytest.mark.parametrize(("words", "code"), [(["presets"], 0), (["presetz"], 2), ([], 2)])
def test_the_command_says_and_returns_what_the_module_does(installed, tmp_path, words, code):
    script = Path(sys.executable).with_name("clippo")
    ours = run(script, *words, folder=tmp_path)
    assert ours == run(sys.executable, "-m", "pipelines", *words, folder=tmp_path)
    assert ours[0] == code
