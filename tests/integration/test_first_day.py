"""What a person meets on the first day: help, mistakes that cost nothing, names nearly right."""

from __future__ import annotations

import io
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clippo_core.checkpoints import load_checkpoint, save_checkpoint
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig, to_json
from clippo_core.errors import CheckpointError, SampleError
from clippo_core.modeling import Clippo
from pipelines.cli import COMMANDS, clean, main
from pipelines.cli.arguments import take_checkpoint
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location
from tests import fuzzing


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "presets"])
def test_every_command_has_help_that_needs_nothing(command: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if command == "prepare":
        assert main([command, "--help"]) == 0
    else:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
    assert f"usage: python -m pipelines {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "show"])
def test_help_names_what_the_command_works_on(command: str, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "a preset or a .json file" in printed
    assert "--train.steps INT" in printed


def test_flags_may_come_first(capsys, make_config, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(to_json(make_config()))
    assert main(["train", "--train.steps", "7", str(file), "--dry-run"]) == 0
    assert "samples_total: 112\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trian", "demo"], 2, "no command is called 'trian'; did you mean train?"),
        (["train", "dmeo"], 2, "did you mean demo?"),
        (["study", "occupid"], 2, "did you mean occupied?"),
        (["prepare", "fashion_mnits"], 2, "did you mean fashion_mnist?"),
        (["evaluate"], 2, "runs holds no run; name a checkpoint or a run"),
        (["report"], 2, "runs holds no run"),
    ],
)
def test_a_name_that_is_nearly_right_is_guessed(
    words, code: int, message: str, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert message in capsys.readouterr().err


def test_data_that_a_flag_names_is_not_taken_for_the_checkpoint(
    tmp_path: Path, model: Clippo, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "runs/newest").mkdir(parents=True)
    (tmp_path / "runs/newest/run.json").write_text("{}")
    save_checkpoint(tmp_path / "mine", model)
    words = ["--input", "pictures", "--out", "o"]
    assert take_checkpoint(words, command="embed") == (str(tmp_path / "runs/newest"), words)
    assert take_checkpoint([*words, "mine"], command="embed") == ("mine", words)


@pytest.fixture
def trained_on(make_config, tmp_path: Path):
    """Write the config of a run with some settings, and return the words that train it."""

    def words(**groups) -> list[str]:
        file = tmp_path / "run.json"
        file.write_text(to_json(make_config(**groups)))
        return ["train", str(file)]

    return words


def test_mistakes_are_found_before_a_run_is_begun(capsys, trained_on, colours, tmp_path):
    parts, texts = tmp_path / "sets", tmp_path / "sets/texts"
    writer = ShardWriter(Location.of(texts), name="texts", kind="next-sentence")
    writer.add(RawSample("one", None, ["A sentence.", "Another one."]))
    writer.close()
    nothing = {"tasks": (f"zero_shot:{tmp_path}/sets/text",)}
    for groups, code, message in (
        ({"data": {"sources": ()}}, 2, "data.sources is empty"),
        ({"data": {"sources": (str(parts),)}}, 3, f"name one of those in it: {texts}"),
        ({"evaluation": nothing}, 3, "did you mean texts?"),
        ({"evaluation": {"tasks": (f"zero_sht:{colours}",)}}, 2, "did you mean zero_shot?"),
        ({"evaluation": {"tasks": (f"zero_shot:{texts}",)}}, 3, "zero_shot needs image-text"),
        ({"evaluation": {"tasks": (f"vqa:{colours}",)}}, 2, "fine-tuned on it"),
        ({"evaluation": {"tasks": (f"multilingual_zero_shot:{colours}",)}}, 3, "several languages"),
    ):
        words = trained_on(**groups)
        for more in ([], ["--dry-run"]):
            assert main([*words, *more]) == code, groups
            printed = capsys.readouterr()
            assert message in printed.err
            assert "\nrun " not in f"\n{printed.out}"
            assert not list(tmp_path.glob("**/run.json.*"))


def test_a_gpu_that_is_not_there_is_missed_at_once(capsys, trained_on, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(trained_on(scaling={"use_gpu": True})) == 2
    printed = capsys.readouterr()
    assert "torch finds none on this machine" in printed.err
    assert printed.out == ""


def test_a_batch_larger_than_the_data_is_warned_of(capsys, trained_on):
    assert main([*trained_on(train={"global_batch_size": 4096}), "--dry-run"]) == 0
    assert "each step takes all of its rows" in capsys.readouterr().out


@pytest.fixture
def model() -> Clippo:
    vit = VitConfig(width=8, depth=1, mlp_dim=8, num_heads=2, embed_dim=4)
    return Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=32)))


def test_a_runs_folder_is_its_newest_checkpoint(tmp_path: Path, model: Clippo):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="a run without a checkpoint yet"):
        load_checkpoint(tmp_path)
    for step, value in ((5, 1.0), (10, 2.0)):
        model.log_logit_scale.data.fill_(value)
        save_checkpoint(tmp_path / f"checkpoints/step_{step:08d}", model)
    assert load_checkpoint(tmp_path).log_logit_scale.item() == 2.0


def test_pictures_are_encoded_from_their_paths(tmp_path: Path, model: Clippo):
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    picture.save(tmp_path / "x.png")
    found = model.encode_images([tmp_path / "x.png", str(tmp_path / "x.png"), picture])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])
    (tmp_path / "y.png").write_bytes(b"nothing")
    with pytest.raises(SampleError, match=r"y\.png cannot be used: unknown_image_format"):
        model.encode_images([tmp_path / "y.png"])
    with pytest.raises(SampleError, match=r"z\.png cannot be read"):
        model.encode_images([tmp_path / "z.png"])


def test_pictures_are_stored_smaller_where_that_is_asked_for(tmp_path: Path, capsys):
    folder = tmp_path / "photos"
    for name, size in (("cat/large", (900, 600)), ("dog/small", (60, 40))):
        (folder / name).parent.mkdir(parents=True)
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{name}.png")
    out = tmp_path / "out"
    words = ["prepare", "folder", str(folder), "--out", str(out), "--max-side-px", "128"]
    assert main(words) == 0
    assert "photos: 2 samples, 2 classes" in capsys.readouterr().out
    stored = {sample.key: sample.image or b"" for sample in open_source(str(out))}
    assert Image.open(io.BytesIO(stored["cat/large.png"])).size == (128, 85)
    assert stored["dog/small.png"] == (folder / "dog/small.png").read_bytes()
    assert main([*words[:-1], "8", "--out", str(tmp_path / "other")]) == 2
    assert "max_side_px=8; expected 32 or more" in capsys.readouterr().err


def test_prepare_shows_pairs_of_texts_and_names_what_it_cannot_use(tmp_path: Path, capsys):
    (tmp_path / "x.txt").write_bytes(b"One. Two. Three.\n\nAlone.\n\n\xff\xff. Four.\n")
    assert main(["prepare", "texts", str(tmp_path / "x.txt"), "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert "'One.'\n    then 'Two.'" in printed
    assert "1 single_sentence, e.g. x.txt:1: Alone." in printed
    assert "1 invalid_unicode, e.g. x.txt:2" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "o")


def test_a_damaged_tar_is_told_of_in_the_last_line(tmp_path: Path, capsys):
    tar = bytearray(fuzzing.tars()[0])
    tar[tar.index(b"x1.png") + 130] ^= 1
    (tmp_path / "x.tar").write_bytes(bytes(tar))
    assert main(["prepare", "index", str(tmp_path / "x.tar"), "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr()
    assert "1 damaged_tar, e.g. x.tar@" in printed.out
    assert printed.err.splitlines()[-1].startswith(
        "1 parts of files are damaged and lost, the first at x.tar@"
    )


def test_clean_shows_what_lies_where_and_removes_only_what_is_named(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("CLIPPO_DATA", str(tmp_path / "data"))
    files = {
        "data/set/manifest.json": 1000,
        "runs/x/run.json": 10,
        "runs/x/checkpoints/damaged_step_00000010/model.safetensors": 500_000,
        "runs/x/checkpoints/step_00000005/model.safetensors": 500_000,
        "runs/mlflow.db": 100,
        "tmp/ray/session_ended/logs/x.log": 100_000,
        "tmp/ray/session_alive/logs/x.log": 100_000,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "tmp/ray/session_alive/sockets").mkdir()
    with socket.socket(socket.AF_UNIX) as raylet:
        # Unix sockets have short names.
        monkeypatch.chdir(tmp_path / "tmp/ray/session_alive/sockets")
        raylet.bind("raylet")
        raylet.listen()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(clean, "_answers", lambda place: place.exists())
        assert main(["clean"]) == 0
        printed = capsys.readouterr().out
        for what in ("data set", "run ", "charts of MLflow", "Ray at work"):
            assert what in printed
        assert "session_ended  (--remove ray)" in printed
        assert printed.splitlines()[-1] == "0.6 MB nobody's, and can be removed"
        assert all((tmp_path / name).exists() for name in files)
        assert main(["clean", "--remove", "ray", "damaged"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0.6 MB removed"
    gone = {name for name in files if not (tmp_path / name).exists()}
    assert gone == {name for name in files if "damaged" in name or "ended" in name}
