"""`python -m cluster.submit` up to the point where a cluster is needed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import ray

from clippo_core.config import to_json
from clippo_core.errors import ConfigError
from cluster import package, sealing, submit
from cluster.dashboard import Dashboard
from cluster.environment import job_environment, refuse_secrets
from cluster.package import pack
from cluster.plan import name_job, plan_job
from tests.deployment.dashboards import HEAD, TOKEN, dashboard, node

BUCKET = ("--storage.root", "s3://bucket/runs")


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell with the cluster's token, and nothing of the person who runs the tests."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_API_SERVER_ADDRESS", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_prints_the_job_and_needs_no_cluster(capsys):
    words = ["--address", "http://127.0.0.1:9", "--dry-run", "--", "train", "paper_b16"]
    assert submit.main([*words, *BUCKET, "--data.sources", "s3://bucket/yfcc"]) == 0
    output = capsys.readouterr().out
    assert "no Ray dashboard answers at http://127.0.0.1:9" in output
    assert "packed; largest: clippo_core/rendering/assets" in output
    name = output.splitlines()[-1]
    assert name.startswith("paper_b16-")
    assert f"--storage.run {name}" in output


def test_the_same_command_with_the_same_code_is_the_same_job():
    words = ["train", "demo", *BUCKET]
    plans = [name_job(plan_job(words, is_here=False), digest) for digest in ("a", "a", "b")]
    assert plans[0] == plans[1]
    assert plans[0].stem != plans[2].stem
    named = name_job(plan_job([*words, "--storage.run", "my run"], is_here=False), "a")
    assert named.stem == "my-run"
    assert named.run is not None
    assert named.run.uri == "s3://bucket/runs/my run"


def test_a_fine_tuning_is_named_as_a_run_is():
    words = ["finetune", "vqa", "--checkpoint", "s3://bucket/runs/one", *BUCKET]
    plan = name_job(plan_job(words, is_here=False), "a")
    assert plan.stem is not None
    assert plan.stem.startswith("finetune_vqa-")
    assert plan.words[-2:] == ("--storage.run", plan.stem)
    assert name_job(plan_job([*words, "--storage.run", "own"], is_here=False), "a").stem == "own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "vqa", *BUCKET], "finetune needs --checkpoint"),
        (["finetune", "vqa", "--checkpoint", "s3://b/run"], "would lie in the job's own folder"),
        (["trian", "demo"], "no command is called 'trian'"),
        (["train", "dmeo", *BUCKET], "no preset is called 'dmeo'"),
        (["train", "demo", *BUCKET, "--train.steps", "0"], "train.steps=0"),
        (["train", "demo"], "would lie in the job's own folder"),
        (["train", "own_data_s16", *BUCKET], "data.sources is empty"),
        (["train", "demo", *BUCKET, "--tracking.uri", "sqlite:///x"], "a file on one machine"),
        (["embed", "s3://b/run", "--input", "s3://b/x", "--out", "here"], "here is a path on this"),
        (["evaluate", "mine"], "mine is a path on this machine"),
    ],
)
def test_what_cannot_run_elsewhere_is_refused_here(words: list[str], message: str):
    Path("mine").mkdir()
    with pytest.raises(ConfigError, match=message):
        plan_job(words, is_here=False)


def test_a_step_that_no_device_of_the_cluster_holds_is_refused_before_it_is_asked():
    words = ["train", "paper_l16", "--data.sources", "s3://b/data", *BUCKET]
    words.append("--scaling.device-memory-gb")
    assert plan_job([*words, "80"], is_here=False).run is not None
    with pytest.raises(ConfigError, match=r"has 4.0 GB.*lower train.micro-batch-size"):
        plan_job([*words, "4"], is_here=False)


def test_data_that_only_the_cluster_sees_is_said_and_not_fatal():
    plan = plan_job(["train", "demo", *BUCKET], is_here=False)
    assert [note for note in plan.notes if "left for the job to check" in note]


def test_a_config_file_and_a_font_travel_with_the_code(make_config, tmp_path: Path):
    (tmp_path / "mine.json").write_text(to_json(make_config()))
    plan = plan_job(["train", "mine.json"], is_here=True)
    assert plan.words[:2] == ("train", "packed:mine.json")
    with zipfile.ZipFile(io.BytesIO(pack(files=plan.files).content)) as archive:
        assert archive.read("job_files/mine.json") == (tmp_path / "mine.json").read_bytes()


def code(folder: Path) -> Path:
    for name in ("clippo_core/a.py", "clippo_core/__pycache__/a.pyc", ".git/x", "runs/r.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "cluster").mkdir()
    (folder / "cluster" / ".cache").write_text("x")
    (folder / "requirements.txt").write_text("ray\n")
    return folder


def test_the_package_holds_the_code_alone_and_is_the_same_every_time(tmp_path: Path):
    first, second = pack(code(tmp_path / "one")), pack(code(tmp_path / "two"))
    assert first.content == second.content
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.namelist() == ["clippo_core/a.py", "requirements.txt"]


def test_a_package_that_ray_would_not_take_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(package, "MAX_PACKAGE_BYTES", 100)
    with pytest.raises(ConfigError, match=r"largest: .*Ray takes 0 KiB at most. Move data out"):
        pack(code(tmp_path))


def test_only_the_token_opens_what_was_sealed(monkeypatch: pytest.MonkeyPatch):
    sealed = sealing.seal({"KEY": "value-of-the-secret"}, TOKEN)
    assert "value-of-the-secret" not in sealed
    assert sealing.unseal(sealed, TOKEN) == {"KEY": "value-of-the-secret"}
    with pytest.raises(ConfigError, match="another token"):
        sealing.unseal(sealed, "another")
    monkeypatch.setenv(sealing.SEALED_VARIABLE, sealed)
    monkeypatch.setenv("KEY", "")
    sealing.open_sealed()
    assert job_environment(["KEY"], is_here=False).secrets["KEY"] == "value-of-the-secret"


def test_secrets_are_sealed_places_are_shown_and_what_is_of_this_machine_stays(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("CLIPPO_DATA", "s3://bucket/data")
    there = job_environment([], is_here=False)
    assert there.places == {"CLIPPO_DATA": "s3://bucket/data"}
    assert there.secrets == {"AWS_SECRET_ACCESS_KEY": "planted-secret"}
    assert "MLFLOW_TRACKING_URI=http://localhost:5000 is of this machine" in there.notes[0]
    assert "planted-secret" not in there.summary()
    here = job_environment([], is_here=True)
    assert here.places["MLFLOW_TRACKING_URI"] == "http://localhost:5000"


def test_without_a_token_no_secret_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = job_environment([], is_here=False)
    assert found.secrets == {}
    assert "AWS_SECRET_ACCESS_KEY stay here" in found.notes[-1]
    with pytest.raises(ConfigError, match="HF_TOKEN cannot be sealed without"):
        job_environment(["HF_TOKEN"], is_here=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [("A=b", "names, not values"), ("RAY_AUTH_TOKEN", "not given"), ("NO_SUCH", "export it")],
)
def test_a_name_that_cannot_be_given_is_refused(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        job_environment([name], is_here=False)


def test_a_secret_in_the_command_or_in_the_code_is_refused(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    environment = job_environment([], is_here=False)
    clean = pack(code(tmp_path))
    refuse_secrets(["train"], clean.content, environment)
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY is in the command"):
        refuse_secrets(["--x", "planted-secret"], clean.content, environment)
    with pytest.raises(ConfigError, match="holds a password"):
        refuse_secrets(["http://me:word@mlflow"], clean.content, environment)
    (tmp_path / "cluster" / "keys.py").write_text("KEY = 'planted-secret'")
    with pytest.raises(ConfigError, match=r"AWS_SECRET_ACCESS_KEY is in cluster/keys.py") as caught:
        refuse_secrets([], pack(tmp_path).content, environment)
    assert "planted-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "mode", "message"),
    [
        ("wrong", "token", "the token in RAY_AUTH_TOKEN is not the cluster's"),
        ("", "token", "there is none in RAY_AUTH_TOKEN"),
        (TOKEN, "disabled", "RAY_AUTH_MODE is disabled; unset it"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_token(
    monkeypatch, tmp_path: Path, capsys, token: str, mode: str, message: str
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with dashboard([HEAD]) as address:
        assert submit.main(["--address", address, "--", "train", "demo", *BUCKET]) == 4
    assert message in capsys.readouterr().err


def test_another_release_of_ray_is_refused_before_anything_is_sent(capsys):
    with dashboard([HEAD], release="2.12.0") as address:
        assert submit.main(["--address", address, "--", "train", "demo", *BUCKET]) == 4
    message = f"the cluster at {address} runs Ray 2.12.0, here is {ray.__version__}; they must be"
    assert message in capsys.readouterr().err


def test_a_patch_of_the_same_release_of_ray_will_do():
    release = ray.__version__.rpartition(".")[0]
    with dashboard([HEAD], release=f"{release}.99") as address:
        assert Dashboard(address).release_mismatch() is None


def test_a_cluster_is_here_if_all_its_machines_have_our_addresses():
    with dashboard([HEAD]) as address:
        assert Dashboard(address).is_this_machine()
    with dashboard([HEAD, node("renderer")]) as address:
        assert not Dashboard(address).is_this_machine()
