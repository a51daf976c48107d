"""The README is true: its map is the disk's, its commands run, its Python runs."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from clippo_core.config import Config
from pipelines.cli import main
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.runtime.storage import Location
from tests.benchmarks import rendering
from tests.integration.colours import COLOURS, encoded_picture
from tests.integration.conftest import ray_on_this_machine
from tests.integration.fashion import write_fashion
from tests.integration.serving import start_page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PACKAGES = ("clippo_core", "pipelines", "cluster")


def commands() -> list[str]:
    return [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]


def map_rows() -> list[tuple[list[str], str]]:
    """The folders of each row of the map, and the file to read first in the first of them."""
    rows = re.findall(r"^\| (`[\w/]+/`.*?) \| .+ \| `([\w/]+\.py)` \|$", README, flags=re.MULTILINE)
    return [(re.findall(r"`([\w/]+)/`", folders), first) for folders, first in rows]


def test_the_map_names_every_folder_of_the_packages():
    named = [folder for folders, _ in map_rows() for folder in folders]
    assert len(named) == len(set(named))
    packages = {
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert packages <= set(named), "there, not in the map"
    assert {folder for folder in named if not (ROOT / folder).is_dir()} == set(), "in the map only"


def test_the_map_names_files_that_exist():
    rows = map_rows()
    assert len(rows) > 10
    for folders, first in rows:
        assert (ROOT / folders[0] / first).is_file(), first


def test_links_lead_somewhere():
    for document in (README, *((ROOT / name).read_text() for name in ("CONTRIBUTING.md",))):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document):
            assert (ROOT / target).exists(), target


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to type commands in, with pictures of one's own, and a stand-in for Fashion-MNIST.

    The stand-in has its form, so that the commands run without network; that `prepare` fetches the
    real one is shown by tests/integration/prepare where it can be had.
    """
    place = tmp_path_factory.mktemp("readme")
    write_fashion(place / "cache")
    write_labelled_sets(place / "cache")
    own = place / "my_pictures"
    own.mkdir()
    rows = ["image,caption"]
    for number in range(60):
        name, colour = list(COLOURS.items())[number % 4]
        (own / f"{number}.png").write_bytes(encoded_picture(colour, number))
        (own / f"{number}.txt").write_text(f"{name} picture {number}\n")
        rows.append(f"my_pictures/{number}.png,{name} again")
    (place / "my_table.csv").write_text("\n".join(rows))
    (place / "my_texts.txt").write_text("\n\n".join(f"Text {n}. It goes on." for n in range(40)))
    (place / "my_tars").mkdir()
    with tarfile.open(place / "my_tars" / "00000.tar", "w") as tar:
        for number in range(8):
            for suffix in ("png", "txt"):
                tar.add(own / f"{number}.{suffix}", f"{number}.{suffix}")
    return place


def write_labelled_sets(cache: Path) -> None:
    """Stand-ins for what `finetune` fetches."""
    for split in ("train", "test"):
        reviews = ShardWriter(
            Location.of(cache / "movie_reviews" / "rotten_tomatoes" / split),
            name=f"rotten_tomatoes-{split}",
            kind="labelled-text",
            class_names=("negative", "positive"),
            evaluation_only=split == "test",
        )
        questions = ShardWriter(
            Location.of(cache / "easy_vqa" / split),
            name=f"easy_vqa-{split}",
            kind="image-question",
            class_names=list(COLOURS),
            evaluation_only=split == "test",
        )
        for number in range(80):
            name, colour = list(COLOURS.items())[number % 4]
            text = ("a dull film", "a fine film")[number % 2]
            reviews.add(RawSample(f"{split}-{number}", None, [text], number % 2))
            picture = encoded_picture(colour, number)
            questions.add(
                RawSample(f"{split}-{number}", picture, [name], number % 4, question="what colour?")
            )
        reviews.close()
        questions.close()


def environment(place: Path) -> dict[str, str]:
    return os.environ | {"CLIPPO_DATA": str(place / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_command_runs_and_ends_with_what_it_made(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """All in this process and on one Ray, which saves each of them its start.

    tests/e2e/test_smoke.py has commands in processes of their own.
    """
    shown = commands()
    assert len(shown) > 12
    monkeypatch.chdir(workplace)
    for name, value in environment(workplace).items():
        monkeypatch.setenv(name, value)
    with ray_on_this_machine():
        for line in shown:
            check_command(line, workplace, capsys)


def check_command(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    assert words[0] == "python", line
    if "mlflow" in words:
        check_server(words, place)
    elif "serve" in words:
        check_page(words, place)
    elif "tests.benchmarks.rendering" not in words:  # that has its own test, with the network
        assert words[1:3] == ["-m", "pipelines"], line
        assert main(words[3:]) == 0, f"{line}\n{capsys.readouterr()}"
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err, line
        if words[3] not in ("presets", "show") and not {"--help", "--list"} & {*words}:
            assert (place / printed.out.splitlines()[-1]).exists(), f"{line}\n{printed.out}"


def check_page(words: list[str], place: Path) -> None:
    """The page finds what the README says it finds, and ends when it is told to."""
    page = start_page(*words[4:], cwd=place, env=environment(place))
    try:
        status, found = page.search("a photo of a sneaker", count=5)
        assert status == 200, found
        assert len(found["results"]) == 5
    finally:
        assert page.stop() == 130


def check_server(words: list[str], place: Path) -> None:
    """The dashboard starts and answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [port if word == "5000" else word for word in words]
    process = subprocess.Popen(
        [sys.executable, *words[1:]],
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                    assert answer.read() == b"OK"
                return
            except OSError:
                continue
    finally:
        # How it ends is MLflow's business, and takes a busy machine long.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.data
@pytest.mark.slow
def test_the_benchmark_prints_its_figures(workplace: Path):
    if not Path("/", rendering.OTF).is_file() and os.environ.get("CLIPPO_FETCH") != "1":
        pytest.skip("the package fonts-unifont is not installed, and CLIPPO_FETCH is not set")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.rendering"],
        cwd=ROOT,
        env=environment(workplace),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^rasters_per_s +[\d,]+\.\d +[\d,]+\.\d$", done.stdout, re.MULTILINE)
    assert Path(done.stdout.splitlines()[-1]).is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_the_python_in_it_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    if not (workplace / "quick.npz").exists():
        pytest.fail("the commands before it did not make quick.npz")
    monkeypatch.chdir(workplace)
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own README
    assert isinstance(names["rasters"].to_pixels(), np.ndarray)  # pyright: ignore


def test_there_are_at_most_83_settings():
    from pipelines.config.derived import flatten
    from pipelines.config.presets import demo

    assert issubclass(type(demo()), Config)
    settings = set(flatten(demo())) - {
        "preset",
        "model.render.font_sha256",
        "model.vocabulary_sha256",
        "model.has_logit_bias",
    }
    assert len(settings) <= 83, sorted(settings)
