"""CLIP_benchmark, open_clip, MTEB and scikit-learn get the numbers that our own tasks get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clippo_core.checkpoints import save_checkpoint
from clippo_core.checkpoints.features_api import ClippoFeatures, TextEncoder
from clippo_core.checkpoints.open_clip_api import as_open_clip, unpack_rows
from clippo_core.errors import ConfigError
from clippo_core.evaluation.retrieval import retrieval_recall
from clippo_core.evaluation.zero_shot import TEMPLATES, class_embeddings, classify, fill
from clippo_core.modeling import Clippo

NAMES = ["boot", "coat", "dress", "shirt", "sandal", "bag"]
TEMPLATE_SET = TEMPLATES["clip7"]


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Clippo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clients") / "model"
    save_checkpoint(path, tiny_model)
    return path


@pytest.fixture(scope="module")
def pictures(tiny_model: Clippo) -> list[Image.Image]:
    """Noisy pictures of the words, larger than the canvas: untrained weights tell them apart."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(48):
        clean = Image.fromarray(tiny_model.renderer.render(NAMES[number % len(NAMES)]))
        pixels = np.asarray(clean.resize((90, 80))).astype(float)
        noisy = np.clip(pixels + generator.normal(0, 80, pixels.shape), 0, 255)
        found.append(Image.fromarray(noisy.astype(np.uint8)))
    return found


@dataclass
class PictureSet(torch.utils.data.Dataset):
    pictures: list[Image.Image]
    targets: list
    transform: Callable
    classes: list[str]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int):
        return self.transform(self.pictures[index]), self.targets[index]


def loader(data: PictureSet, **options) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(data, batch_size=10, **options)


def top_k_accuracies(output: torch.Tensor, target: torch.Tensor, topk: tuple) -> list[float]:
    """In place of CLIP_benchmark 1.6's, which ends in `float` of an array with one number in it.

    NumPy 2.4 no longer takes that.
    """
    ranked = output.topk(max(topk)).indices == target[:, None]
    return [ranked[:, :k].any(dim=1).double().mean().item() for k in topk]


def test_clip_benchmark_classifies_as_we_do(
    checkpoint: Path, tiny_model: Clippo, pictures, monkeypatch: pytest.MonkeyPatch
):
    from clip_benchmark.metrics import zeroshot_classification

    monkeypatch.setattr(zeroshot_classification, "accuracy", top_k_accuracies)
    labels = np.arange(len(pictures)) % len(NAMES)
    model, transform, tokenizer = as_open_clip(checkpoint)
    theirs = zeroshot_classification.evaluate(
        model,
        loader(PictureSet(pictures, labels.tolist(), transform, NAMES)),
        tokenizer,
        NAMES,
        [template.replace("{}", "{c}") for template in TEMPLATE_SET],
        "cpu",
        amp=False,
    )
    prompts = tiny_model.encode_texts(fill(TEMPLATE_SET, NAMES))
    classes = class_embeddings(prompts, num_classes=len(NAMES))
    ours = classify(tiny_model.encode_images(pictures), classes, labels)
    assert 1 / len(NAMES) < ours.accuracy < 1
    assert theirs["acc1"] == pytest.approx(ours.accuracy, abs=1e-6)
    assert theirs["acc5"] == pytest.approx(ours.top_k_accuracy(5), abs=1e-6)
    expected = pytest.approx(ours.mean_class_accuracy, abs=1e-6)
    assert theirs["mean_per_class_recall"] == expected


def test_clip_benchmark_retrieves_as_we_do(checkpoint: Path, tiny_model: Clippo, pictures):
    from clip_benchmark.metrics import zeroshot_retrieval

    captions = [
        [f"{NAMES[i % 6]} {i}", f"the {i}th {NAMES[i % 6]}"][: 1 + i % 2] for i in range(48)
    ]
    model, transform, tokenizer = as_open_clip(checkpoint)

    def collate(batch):
        images, texts = zip(*batch, strict=True)
        return torch.stack(images), list(texts)

    theirs = zeroshot_retrieval.evaluate(
        model,
        loader(PictureSet(pictures, captions, transform, []), collate_fn=collate),
        tokenizer,
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    texts = tiny_model.encode_texts([text for some in captions for text in some])
    image_of_text = np.repeat(np.arange(48), [len(some) for some in captions])
    ours = retrieval_recall(tiny_model.encode_images(pictures), texts, image_of_text)
    for k in (1, 5, 10):
        found = theirs[f"text_retrieval_recall@{k}"], theirs[f"image_retrieval_recall@{k}"]
        expected = ours[f"image_to_text_recall@{k}"], ours[f"text_to_image_recall@{k}"]
        assert found == pytest.approx(expected, abs=1e-6)


def test_open_clip_builds_our_classifier_from_its_own_templates(
    checkpoint: Path, tiny_model: Clippo
):
    import open_clip

    model, _, tokenizer = as_open_clip(checkpoint)
    for ours, theirs in (
        ("clip7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        ("clip80", open_clip.OPENAI_IMAGENET_TEMPLATES),
    ):
        built = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, theirs)
        prompts = tiny_model.encode_texts(fill(TEMPLATES[ours], NAMES))
        expected = class_embeddings(prompts, num_classes=len(NAMES))
        np.testing.assert_allclose(built.T.numpy(), expected, atol=1e-6)
        assert sorted(fill(TEMPLATES[ours], ["cat"])) == sorted(t("cat") for t in theirs)


def test_packed_texts_come_back_as_they_were(checkpoint: Path, tiny_model: Clippo):
    texts = ["", "a", "two rows of words, or so", " " * 30 + "x", "many words " * 30, "语"]
    _, _, tokenizer = as_open_clip(checkpoint)
    rasters = tiny_model.renderer.render_batch(texts)
    again = unpack_rows(tokenizer(texts), rasters.config)
    np.testing.assert_array_equal(again.columns, rasters.columns)
    np.testing.assert_array_equal(again.row_offsets, rasters.row_offsets)
    assert torch.equal(tokenizer("a"), tokenizer(["a"], context_length=77))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_pictures_may_be_cast(checkpoint: Path, tiny_model: Clippo, pictures, dtype: torch.dtype):
    model, transform, tokenizer = as_open_clip(checkpoint)
    images = torch.stack([transform(picture) for picture in pictures[:3]]).to(dtype)
    with torch.no_grad():
        found, texts, scale = model(images, tokenizer(NAMES))
    np.testing.assert_allclose(found.numpy(), tiny_model.encode_images(pictures[:3]), atol=1e-6)
    np.testing.assert_allclose(texts.numpy(), tiny_model.encode_texts(NAMES), atol=1e-6)
    assert scale == pytest.approx(model.logit_scale.exp().item())


def test_what_another_transform_made_is_refused(checkpoint: Path):
    model, _, _ = as_open_clip(checkpoint)
    with pytest.raises(ConfigError, match="whole grey levels"):
        model.encode_image(torch.rand(1, 3, 64, 64))
    with pytest.raises(ConfigError, match="use the tokenizer"):
        model.encode_text(torch.zeros(1, 14, 224, dtype=torch.int16))


def test_mteb_gets_embeddings_of_lists_and_of_batches(tiny_model: Clippo):
    expected = tiny_model.encode_texts(NAMES)
    encoder = TextEncoder(tiny_model)
    np.testing.assert_array_equal(encoder.encode(NAMES, task_name="STS"), expected)
    batches = [{"text": NAMES[:2]}, {"text": NAMES[2:]}]
    np.testing.assert_array_equal(encoder.encode(batches, prompt_type=None), expected)
    with pytest.raises(ConfigError, match="'text'"):
        encoder.encode([{"image": NAMES}])


def test_a_scikit_learn_pipeline_takes_texts_and_pictures(
    checkpoint: Path, tiny_model: Clippo, pictures
):
    from sklearn.base import clone
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline

    features = clone(ClippoFeatures(str(checkpoint), batch_size=7)).fit()
    np.testing.assert_allclose(features.transform(NAMES), tiny_model.encode_texts(NAMES), atol=1e-6)
    found = features.transform(pictures)
    np.testing.assert_allclose(found, tiny_model.encode_images(pictures), atol=1e-6)
    assert len(features.get_feature_names_out()) == found.shape[1]
    labels = np.arange(48) % 6
    pipeline = make_pipeline(ClippoFeatures(checkpoint), RidgeClassifier(alpha=1e-4))
    assert pipeline.fit(NAMES, range(6)).score(NAMES, range(6)) == 1
    assert pipeline.fit(pictures, labels).score(pictures, labels) > 1 / 6
    with pytest.raises(ConfigError, match="texts and pictures"):
        features.transform(["a", pictures[0]])
