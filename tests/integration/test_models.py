"""A checkpoint as an MLflow model: loads where the project is not, takes texts and pictures."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest

from clippo_core.checkpoints import load_checkpoint, save_checkpoint
from clippo_core.errors import SampleError
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo, make_model
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from pipelines.tracking.clippo_pyfunc import ClippoFunction
from pipelines.tracking.models import is_better, store_once, write_model
from tests.integration.colours import COLOURS, encoded_picture

PNG = encoded_picture(COLOURS["red"], 0)
ELSEWHERE = """
import base64, json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
import clippo_core
rows = [{"text": "a red car"}, {"image": base64.b64decode(sys.argv[2])}]
print(json.dumps({"code": clippo_core.__file__, "rows": model.predict(rows).tolist()}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clippo_core.config import ClippoConfig, RenderConfig, VitConfig

    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    model = Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=32)))
    path = tmp_path_factory.mktemp("model") / "step_00000001"
    save_checkpoint(path, model)
    return path


def expected(checkpoint: Path, text: str) -> np.ndarray:
    model = load_checkpoint(checkpoint)
    pixels = decode_image(PNG, model.config.image, image_size_px=32)
    return np.concatenate([model.encode_texts([text]), model.encode_images(pixels[None])])


@pytest.fixture(scope="module")
def baseline(checkpoint: Path) -> Path:
    """CLIP*, whose checkpoint has a file more."""
    config = dataclasses.replace(
        load_checkpoint(checkpoint).config, text_input="tokens_two_towers", vocabulary_size=320
    )
    vocabulary = Vocabulary(train_vocabulary(["a red car", "a blue boat"] * 9, size=320))
    path = checkpoint.parent / "step_00000002"
    save_checkpoint(path, make_model(config, vocabulary=vocabulary))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "baseline"])
def test_a_model_loads_without_the_project_and_embeds_texts_and_pictures(name, request, tmp_path):
    checkpoint = request.getfixturevalue(name)
    folder = tmp_path / "logged"
    config = load_checkpoint(checkpoint).config
    write_model(folder, checkpoint, config, run_id="r", model_id="m")
    assert {f.name for f in (folder / "data/checkpoint").iterdir()} == {
        "config.json",
        "model.safetensors",
        *(["vocabulary.model"] if name == "baseline" else []),
    }
    words = ["-c", ELSEWHERE, str(folder), base64.b64encode(PNG).decode()]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["code"].startswith(str(folder)), "the code that travels with the model is used"
    np.testing.assert_allclose(answer["rows"], expected(checkpoint, "a red car"), atol=1e-6)

    loaded = mlflow.pyfunc.load_model(str(folder))
    assert loaded.metadata.signature.outputs.inputs[0].shape == (-1, 16)
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "+cpu" not in requirements


def test_rows_are_refused_that_have_no_text_and_no_picture_or_both(checkpoint):
    function = ClippoFunction(load_checkpoint(checkpoint))
    table = pd.DataFrame({"text": ["a", None], "image": [None, PNG]}, dtype=object)
    np.testing.assert_allclose(function.predict(table), expected(checkpoint, "a"), atol=1e-6)
    for rows, message in (
        ([{"text": "a", "image": PNG}], "row 0 has both"),
        ([{"text": "a"}, {"text": None}], "row 1 has neither"),
        ([{"caption": "a"}], "there is no column text or image"),
        ([{"image": b"no picture"}], "row 0 is refused: unknown_image_format"),
    ):
        with pytest.raises(SampleError, match=message):
            function.predict(pd.DataFrame(rows, dtype=object))


def test_better_is_more_but_for_losses_and_a_number_that_is_none_never_is():
    assert is_better(0.6, 0.5, less_is_better=False)
    assert not is_better(0.5, 0.5, less_is_better=False)
    assert is_better(3, 5, less_is_better=True)
    assert not is_better(float("nan"), 0.5, less_is_better=False)


def test_a_model_takes_no_room_beside_its_checkpoint(tmp_path: Path):
    checkpoint, model = tmp_path / "step", tmp_path / "model"
    for folder in (checkpoint, model / "data/checkpoint"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(100_000))
        (folder / "config.json").write_bytes(b"{}")
    (model / "data/checkpoint/other.bin").write_bytes(bytes(100_000))
    store_once(checkpoint, model)
    stored = model / "data/checkpoint/model.safetensors"
    assert stored.samefile(checkpoint / "model.safetensors")
    assert not (model / "data/checkpoint/config.json").samefile(checkpoint / "config.json")
    (checkpoint / "model.safetensors").unlink()
    assert stored.read_bytes() == bytes(100_000)
