"""Files on disks and in buckets; "memory" stands for a bucket here."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from clippo_core.checkpoints import load_checkpoint, save_checkpoint
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.errors import CheckpointError, StorageError
from clippo_core.modeling import Clippo
from pipelines.runtime.run_checkpoints import (
    checkpoint_name,
    commit_checkpoint,
    fetched,
    find_checkpoint,
    remove_checkpoint,
    remove_leftovers,
    set_damaged_aside,
    whole_checkpoints,
)
from pipelines.runtime.scratch import remove_left_over, scratch_folder
from pipelines.runtime.storage import (
    JsonLines,
    Location,
    SupersededError,
    check_owner,
    read_json_lines,
    take_over,
)


@pytest.fixture(params=["disk", "bucket"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location.of(tmp_path if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture(scope="module")
def model() -> Clippo:
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    return Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=32)))


def commit(run: Location, model: Clippo, step: int) -> Location:
    target = run / "checkpoints" / checkpoint_name(step)
    commit_checkpoint(lambda path: save_checkpoint(path, model), target)
    return target


def test_the_newest_whole_checkpoint_is_found_and_loads(run: Location, model: Clippo):
    assert whole_checkpoints(run) == []
    for step in (5, 10, 100):
        commit(run, model, step)
    assert [step for step, _ in whole_checkpoints(run)] == [5, 10, 100]
    place = find_checkpoint(run.uri)
    assert place.name == "step_00000100"
    assert find_checkpoint(place.uri) == place
    with fetched(place) as path:
        load_checkpoint(path)


def test_a_half_written_checkpoint_does_not_count_and_is_cleared_away(run: Location, model: Clippo):
    commit(run, model, 5)
    half = run / "checkpoints" / checkpoint_name(10)
    (half / "model.safetensors").write_bytes(b"half")
    (run / "checkpoints" / ".step_00000015-abc" / "config.json").write_bytes(b"{}")
    assert [step for step, _ in whole_checkpoints(run)] == [5]
    remove_leftovers(run)
    assert (run / "checkpoints").names() == ["step_00000005"]


def test_a_removed_checkpoint_is_gone(run: Location, model: Clippo):
    remove_checkpoint(commit(run, model, 5))
    assert whole_checkpoints(run) == []
    with pytest.raises(CheckpointError):
        find_checkpoint(run.uri)


def test_damaged_checkpoints_are_set_aside_up_to_the_newest_sound_one(run: Location, model: Clippo):
    for step in (5, 10, 15):
        commit(run, model, step)
    weights = run / "checkpoints" / checkpoint_name(10) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert set_damaged_aside(run) == []
    (run / "checkpoints" / checkpoint_name(15) / "model.safetensors").remove_file()
    lines = set_damaged_aside(run)
    assert [line.partition(":")[0] for line in lines] == [
        f"passed over {name}, now damaged_{name}" for name in map(checkpoint_name, (15, 10))
    ]
    assert "No such file" in lines[0]
    assert "its SHA-256 is not the one that config.json names" in lines[1]
    assert [step for step, _ in whole_checkpoints(run)] == [5]
    (run / "checkpoints" / checkpoint_name(5) / "config.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is sound"):
        set_damaged_aside(run)


def test_all_files_of_a_checkpoint_can_be_read_by_those_the_umask_lets(
    tmp_path: Path, model: Clippo
):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "x", model)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "x").iterdir()} == {0o640}
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o750


def test_scratch_of_a_killed_process_is_removed_by_the_next(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import os, signal, sys\n"
        "from pipelines.runtime.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'model').write_bytes(bytes(100))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    (left,) = tmp_path.iterdir()
    with scratch_folder() as ours:
        assert left.exists(), "it may be in the making"
        for folder in (left, ours):
            os.utime(folder / ".lock", (0, 0))
        assert remove_left_over() == 1
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_only_the_last_attempt_may_write(run: Location):
    take_over(run, "first")
    check_owner(run, "first")
    take_over(run, "second")
    with pytest.raises(SupersededError, match="taken over by second; first stops here"):
        check_owner(run, "first")


def test_rows_are_written_in_parts_and_read_in_order(run: Location):
    lines = JsonLines(run / "rows", "a")
    for step in (1, 2, 3):
        lines.add({"step": step, "text": "日本"})
        lines.flush(step)
    lines.flush(4)
    assert [row["step"] for row in read_json_lines(run / "rows")] == [1, 2, 3]
    assert len((run / "rows").names()) == 3


def test_a_place_that_cannot_be_opened_is_a_storage_error():
    with pytest.raises(StorageError, match="cannot be opened"):
        Location.of("nonsense://bucket/x").exists()


def test_a_missing_place_is_named():
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint("/no/such/place")
