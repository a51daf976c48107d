"""The commands that need no Ray, as a person types them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clippo_core.config import RenderConfig, to_json
from clippo_core.errors import SampleError
from clippo_core.rendering import TextRenderer
from pipelines.cli import COMMANDS, main
from pipelines.config.presets import PRESETS
from pipelines.datasets.manifest import Manifest, Shard, read_manifest, write_manifest
from pipelines.datasets.prepare.registry import RegistrySet
from pipelines.datasets.prepare.registry.fashion_mnist import CLASS_NAMES, captions_of
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location
from tests.integration.colours import colour_samples, encoded_picture, write_samples

NPZ = Path(__file__).parents[1] / "parity" / "reference" / "big_vision_checkpoint.npz"


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command in output for command in COMMANDS)
    assert main(["trian"]) == 2


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"presets", "clean"}))
def test_every_command_says_what_it_misses(command: str, capsys):
    try:
        code = main([command])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2


def test_presets_are_one_line_each(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(len(line) < 120 for line in lines)


def test_an_unknown_preset_or_flag_or_value_is_refused(capsys):
    assert main(["show", "dmeo"]) == 2
    assert "there are demo" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["show", "demo", "--train.stesp", "5"])
    assert caught.value.code == 2
    assert "--train.steps" in capsys.readouterr().err
    assert (
        main(["show", "demo", "--train.global-batch-size", "255", "--scaling.num-ranks", "2"]) == 2
    )
    assert "does not divide over 2 ranks; the largest below it" in capsys.readouterr().err
    assert main(["show", "paper_b16", "--train.steps", "5"]) == 2
    assert "warmup" in capsys.readouterr().err


def test_show_derives_numbers_with_and_without_data(capsys, make_config, tmp_path):
    assert main(["show", "demo"]) == 0
    output = capsys.readouterr().out
    assert "parameters" in output
    assert "without the numbers that depend on the data" in output
    assert "prepare fashion_mnist" in output
    (tmp_path / "run.json").write_text(to_json(make_config()))
    assert main(["show", str(tmp_path / "run.json")]) == 0
    assert 'passes_per_source               {"colours": 1.6}' in capsys.readouterr().out


def test_show_tells_two_configs_apart(capsys):
    assert main(["show", "demo", "--train.seed", "7", "--diff", "demo"]) == 0
    assert capsys.readouterr().out == "train.seed: 0 -> 7\n"


def test_a_config_file_with_an_unknown_key_is_refused(capsys, tmp_path):
    (tmp_path / "bad.json").write_text('{"train": {"stpes": 5}}')
    assert main(["show", str(tmp_path / "bad.json")]) == 2
    assert "train.stpes" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "none.json")]) == 2


def test_render_draws_what_the_model_sees(capsys, tmp_path):
    out = tmp_path / "x.png"
    assert main(["render", "Ein Text 日本", "--out", str(out), "--image-size-px", "96"]) == 0
    assert last_line(capsys) == str(out)
    expected = TextRenderer(RenderConfig(image_size_px=96)).render("Ein Text 日本")
    np.testing.assert_array_equal(pixels_of(out), expected)
    assert main(["render", "ABC", "--out", str(out), "--checkpoint", str(NPZ)]) == 0
    assert pixels_of(out).shape == (64, 64, 3)


def test_inspect_shows_pairs_and_counts_rejects(capsys, make_config, tmp_path):
    samples = colour_samples(100)
    samples[3] = samples[3]._replace(image=b"broken")
    source = write_samples(tmp_path / "some", samples, name="some")
    (tmp_path / "run.json").write_text(to_json(make_config(data={"sources": (str(source),)})))
    out = tmp_path / "sheet.png"
    assert main(["inspect", str(tmp_path / "run.json"), "-n", "6", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "some  unknown_image_format  e.g. s0003" in output
    assert output.splitlines()[-1] == str(out)
    assert pixels_of(out).shape[1] > 4 * 64


def test_a_dry_run_checks_everything_and_starts_nothing(
    capsys, make_config, tmp_path, mlflow_tables
):
    (tmp_path / "run.json").write_text(to_json(make_config()))
    assert main(["train", str(tmp_path / "run.json"), "--dry-run"]) == 0
    assert "would train in" in last_line(capsys)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [mlflow_tables.name]
    assert (tmp_path / "runs" / mlflow_tables.name).read_bytes() == mlflow_tables.read_bytes()


def test_train_without_data_fetches_it_or_says_why_not(capsys, monkeypatch, tmp_path):
    def fail(_set, _out=None):
        raise SampleError("Fashion-MNIST cannot be fetched")

    monkeypatch.setenv("CLIPPO_DATA", str(tmp_path))
    monkeypatch.setattr(RegistrySet, "prepare", fail)
    assert main(["train", "demo"]) == 3
    assert "Fashion-MNIST cannot be fetched" in capsys.readouterr().err
    assert main(["train", "own_data_s16"]) == 2
    assert "data.sources is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").write_text("{"), "not a valid Manifest"),
        (lambda f: (f / "shard-00001.parquet").unlink(), "is not what the manifest says"),
        (lambda f: (f / "shard-00000.parquet").write_bytes(b"x"), "is not what the manifest says"),
        (
            lambda f: write_manifest(
                Location.of(f), [Shard("../x.parquet", 60, "v")], Manifest(name="colours")
            ),
            "leads out of",
        ),
    ],
)
def test_damaged_data_is_found_before_a_machine_is_taken(
    capsys, make_config, tmp_path, damage, message: str
):
    source = write_samples(tmp_path / "set", colour_samples(60))
    (tmp_path / "run.json").write_text(to_json(make_config(data={"sources": (str(source),)})))
    damage(source)
    assert main(["train", str(tmp_path / "run.json"), "--dry-run"]) == 3
    assert message in capsys.readouterr().err


def test_mostly_bad_data_is_refused_with_the_reasons(capsys, make_config, tmp_path):
    samples = [sample._replace(captions=None) for sample in colour_samples(60)]
    source = write_samples(tmp_path / "set", samples)
    (tmp_path / "run.json").write_text(to_json(make_config(data={"sources": (str(source),)})))
    assert main(["train", str(tmp_path / "run.json"), "--dry-run"]) == 3
    assert "60 of the first 60 samples cannot be used: s0000: missing_caption" in (
        capsys.readouterr().err
    )


def test_resume_refuses_what_would_make_it_another_run(capsys, make_config, tmp_path):
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(to_json(make_config()))
    words = ["resume", str(folder), "--train.seed", "5", "--scaling.num-ranks", "2"]
    assert main(words) == 2
    assert "cannot change train.seed:" in capsys.readouterr().err
    assert main(["resume", str(tmp_path)]) == 2
    assert "is no run: it has no run.json" in capsys.readouterr().err


def test_convert_there_and_back_gives_the_same_file(capsys, tmp_path):
    native, back = tmp_path / "native", tmp_path / "back.npz"
    assert main(["convert", str(NPZ), "--to", "native", "--out", str(native)]) == 0
    assert main(["convert", str(native), "--to", "big_vision", "--out", str(back)]) == 0
    output = capsys.readouterr().out
    assert output.count("largest difference on a probe batch: 0\n") == 2
    assert back.read_bytes() == NPZ.read_bytes()
    assert main(["convert", str(NPZ), "--out", str(native)]) == 2
    assert "exists" in capsys.readouterr().err
    alone = tmp_path / "weights.safetensors"
    assert main(["convert", str(native), "--to", "safetensors", "--out", str(alone)]) == 0
    assert last_line(capsys) == str(alone)


def picture_folder(folder: Path, *, with_text: bool) -> Path:
    for number in range(10):
        place = folder / ("warm" if number % 2 else "cold_things") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded_picture((number * 20,) * 3, number))
        if with_text and number != 4:
            place.with_suffix(".txt").write_text(f"picture {number}\n\nbild {number}\n")
    (folder / "warm" / "broken.png").write_bytes(b"no")
    return folder


def test_a_folder_with_captions_becomes_a_data_set(capsys, tmp_path):
    folder, out = picture_folder(tmp_path / "mine", with_text=True), tmp_path / "out"
    assert main(["prepare", "folder", str(folder), "--out", str(out)]) == 0
    assert last_line(capsys) == str(out)
    samples = {sample.key: sample for sample in open_source(str(out))}
    assert len(samples) == 9
    assert samples["warm/3.png"].captions == ["picture 3", "bild 3"]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {(row["key"], row["reason"]) for row in rejects} == {
        ("cold_things/4.png", "missing_caption"),
        ("warm/broken.png", "missing_caption"),
    }
    assert main(["prepare", "folder", str(folder), "--out", str(out)]) == 2


def test_a_folder_of_classes_becomes_a_data_set_with_classes(capsys, tmp_path):
    folder, out = picture_folder(tmp_path / "mine", with_text=False), tmp_path / "out"
    words = ["prepare", "folder", str(folder), "--out", str(out), "--test-share", "0.3"]
    assert main(words) == 0
    parts = [read_manifest(Location.of(out / split)) for split in ("train", "test")]
    assert [part.class_names for part in parts] == [("cold things", "warm")] * 2
    assert sum(part.num_rows for part in parts) == 10
    sample = next(iter(open_source(str(out / "train"))))
    assert "a photo of a cold things" in (sample.captions or [])
    keys = [{s.key for s in open_source(str(out / split))} for split in ("train", "test")]
    assert not keys[0] & keys[1]


def test_pictures_without_captions_or_classes_are_refused(capsys, tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(encoded_picture((9, 9, 9), 0))
    assert main(["prepare", "folder", str(tmp_path / "flat"), "--out", str(tmp_path / "o")]) == 3
    assert "pictures without captions" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["prepare", "folder", str(tmp_path / "empty"), "--out", str(tmp_path / "o")]) == 3
    assert main(["prepare", "folder", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_becomes_a_data_set(capsys, tmp_path, suffix: str, delimiter: str):
    picture_folder(tmp_path, with_text=False)
    rows = [
        ("warm/1.png", "one, with a comma", "odd"),
        ("warm/1.png", "eins", "odd"),
        ("warm/3.png", "three\nin two lines", "odd"),
        ("warm/9999.png", "missing", "odd"),
        ("warm/broken.png", "broken", "odd"),
        ("warm/5.png", " ", ""),
    ]
    buffer = io.StringIO()
    import csv

    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerows([("file", "words", "kind"), *rows])
    (tmp_path / f"table{suffix}").write_text("﻿" + buffer.getvalue(), encoding="utf-8")
    words = ["prepare", "csv", str(tmp_path / f"table{suffix}"), "--out", str(tmp_path / "out")]
    columns = ["--image-column", "file", "--caption-column", "words", "--class-column", "kind"]
    assert main([*words, *columns]) == 0
    samples = {sample.key: sample for sample in open_source(str(tmp_path / "out"))}
    assert samples["warm/1.png"].captions == ["one, with a comma", "eins"]
    assert samples["warm/3.png"].captions == ["three\nin two lines"]
    assert len(samples) == 2
    assert read_manifest(Location.of(tmp_path / "out")).num_rejected == 3


def test_a_table_without_the_column_names_those_it_has(capsys, tmp_path):
    (tmp_path / "table.csv").write_text("picture,text\na.png,b\n")
    words = ["prepare", "csv", str(tmp_path / "table.csv"), "--out", str(tmp_path / "o")]
    assert main(words) == 3
    assert "has no column 'image'; it has ['picture', 'text']" in capsys.readouterr().err
    (tmp_path / "table.csv").write_bytes(b"image,\xff,caption\nx.png,x,x\n")
    assert main(words) == 3
    assert "not UTF-8" in capsys.readouterr().err
    (tmp_path / "table.csv").write_bytes(b"image,caption\n\xff\xfe,x\n")
    assert main(words) == 3
    assert "1 rejected: invalid_unicode" in capsys.readouterr().err


def test_every_fashion_caption_fits_on_the_demos_canvas():
    """A caption that were cut would lose its class name."""
    wide = TextRenderer(RenderConfig(image_size_px=64))
    for class_id in range(len(CLASS_NAMES)):
        captions = captions_of(class_id)
        assert len(set(captions)) == len(captions)
        for caption in captions:
            longer = wide.render_batch([caption, caption + "x"]).to_pixels()
            assert (longer[0] != longer[1]).any(), f"{caption!r} does not fit"


def test_a_missing_checkpoint_is_an_error_of_every_command_that_takes_one(capsys, tmp_path):
    missing = str(tmp_path / "none")
    for words in (
        ["evaluate", missing],
        ["embed", missing, "--input", missing, "--out", missing],
        ["convert", missing],
        ["render", "a", "--checkpoint", missing],
    ):
        assert main(words) == 2
        assert "does not exist" in capsys.readouterr().err
