"""cluster/README.md is true as far as one machine can tell: commands run dry, or parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cluster import doctor, sizing, submit
from tests.deployment.test_manifests import document
from tests.integration.colours import colour_samples, write_samples

ROOT = Path(__file__).parents[2]
README = (ROOT / "cluster" / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


def commands(*start: str) -> list[list[str]]:
    """The commands that begin so, without the variables before them."""
    found = []
    for line in LINES:
        words = shlex.split(line)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words[: len(start)] == list(start):
            found.append(words)
    return found


@pytest.mark.parametrize("words", commands("python", "-m", "cluster.submit"), ids=shlex.join)
def test_what_is_submitted_could_be(words: list[str], monkeypatch, tmp_path: Path):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    if "--" not in words:
        # Of a job, which must be there.
        assert {"--submission-id", "--stop", "--status", "--list"} & set(words)
        return
    # The laptop's own examples mean the cluster on this machine, where runs/ will do.
    elsewhere = [] if "--storage.root" in words else ["--storage.root", str(tmp_path)]
    options = [word for word in words[3:] if word != "--dry-run"]
    command = options[options.index("--") + 1 :]
    elsewhere = elsewhere if command[0] == "train" else []
    assert submit.main(["--dry-run", *options, *elsewhere]) == 0


def test_the_doctor_takes_what_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", ())
    monkeypatch.setattr(doctor, "check_place", lambda uri: [])
    monkeypatch.setattr(doctor, "_ask_cluster", lambda address, check: [])
    monkeypatch.delenv("CLIPPO_DATA")
    for words in commands("python", "-m", "cluster.doctor"):
        assert doctor.main(words[3:]) == 0


@pytest.mark.parametrize("words", commands("python", "-m", "cluster.sizing"), ids=shlex.join)
def test_sizing_says_how_many_workers(words: list[str], tmp_path: Path, capsys):
    source = write_samples(tmp_path / "colours", colour_samples(256))
    own = ["--data.sources", str(source), "--evaluation.tasks", "--seconds", "0.1"]
    assert sizing.main([*words[3:], *own]) == 0
    assert int(capsys.readouterr().out.splitlines()[-1]) >= 1


@pytest.mark.parametrize("words", commands("ray"), ids=shlex.join)
def test_ray_knows_its_commands_and_options(words: list[str], monkeypatch: pytest.MonkeyPatch):
    from ray.scripts.scripts import cli

    monkeypatch.chdir(ROOT)
    command, context = cli, None
    names = words[1:3] if words[1] == "job" else words[1:2]
    for name in names:
        command = command.get_command(context, name)
        assert command is not None, name
    command.make_context(names[-1], words[1 + len(names) :])


def test_files_and_names_of_the_other_commands_exist():
    cluster = document("raycluster.yaml", "RayCluster")["metadata"]["name"]
    job = document("rayjob.yaml", "RayJob")["metadata"]["name"]
    text = "\n".join(LINES)
    for name in re.findall(r"cluster/[\w.-]+", text):
        assert (ROOT / name).exists(), name
    assert set(re.findall(r"service/(\S+)-head-svc", text)) == {cluster}
    assert set(re.findall(r"get secret (\S+)", text)) == {cluster}
    assert set(re.findall(r"get rayjob (\S+)", text)) == {job}
    known = {"python", "ray", "kubectl", "helm", "docker", "ssh", "scp", "chmod", "umask", "for"}
    first = {re.sub(r"^([A-Z_]+=\S+ )+", "", line).split()[0] for line in LINES}
    assert first <= known


def test_links_and_sections_are_there():
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        place, _, anchor = target.partition("#")
        assert not place or (ROOT / "cluster" / place).exists(), target
        assert not anchor or anchor in anchors, target


def test_the_secrets_that_the_compose_file_wants_are_the_ones_that_are_made():
    wanted = re.findall(r"\$\{(\w+):\?", (ROOT / "cluster" / "mlflow-compose.yaml").read_text())
    (made,) = [line for line in LINES if line.startswith("for name in ")]
    assert set(wanted) == set(made.partition(";")[0].split()[3:])
