"""Every registered evaluation, on small sets whose right answers are known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clippo_core.checkpoints import load_checkpoint
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.contrastive import contrastive_loss
from clippo_core.errors import ConfigError, SampleError
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from clippo_core.rendering import TextRenderer
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.datasets.sources import Source, open_source
from pipelines.evaluation.results import TaskResult
from pipelines.evaluation.tasks import EVALUATIONS, WITHOUT_DATA, parse_benchmark
from pipelines.runtime.storage import Location
from tests.integration.colours import COLOURS, colour_samples, write_samples

NAMES = list(COLOURS)
OPTIONS = EvaluationOptions(templates=("{}",))


@pytest.fixture(scope="module")
def trained() -> Clippo:
    """A model that knows four colours by their names."""
    torch.manual_seed(0)
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    model = Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64)))
    samples = colour_samples(32)
    pixels = [decode_image(s.image, model.config.image, image_size_px=64) for s in samples]
    images = torch.from_numpy(np.stack(pixels))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        rows = [4 * (step % 8) + number for number in range(4)]
        texts = model.renderer.render_batch([NAMES[samples[row].class_id] for row in rows])
        loss = contrastive_loss(*model(images[rows], texts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Test and training set of colours with their names as captions; the test set is opened."""
    folder = tmp_path_factory.mktemp("named")
    samples = [s._replace(captions=[NAMES[s.class_id or 0]]) for s in colour_samples(160)]
    write_samples(folder / "train", samples[60:], name="colours-train")
    write_samples(folder / "test", samples[:60], name="colours-test")
    return open_source(str(folder / "test"))


def text_set(folder: Path, samples: list[RawSample], kind: str, classes: tuple = ()) -> Source:
    place = Location.of(folder)
    writer = ShardWriter(place, name=folder.name, kind=kind, class_names=classes)  # pyright: ignore
    for sample in samples:
        writer.add(sample)
    writer.close()
    return open_source(place.uri)


def check(result: TaskResult) -> TaskResult:
    """What holds for every evaluation."""
    json.dumps(dataclasses.asdict(dataclasses.replace(result, pictures={})), allow_nan=False)
    for name, (low, high) in result.intervals.items():
        assert low - 1e-9 <= result.metrics[name] <= high + 1e-9, name
    assert set(result.floors) <= set(result.metrics)
    assert all(p.ndim == 3 and p.dtype == np.uint8 for p in result.pictures.values())
    return result


def test_zero_shot_tells_colours_and_its_floors(trained, named):
    result = check(EVALUATIONS["zero_shot"](trained, named, OPTIONS))
    assert result.metrics["accuracy"] > 0.9
    assert result.floors["accuracy"] == {"chance": 0.25, "most frequent class": 0.25}


def test_few_shot_draws_from_the_training_set_beside_the_test_set(trained, named, tmp_path):
    result = check(EVALUATIONS["few_shot"](trained, named, OPTIONS))
    assert result.metrics["accuracy"] > 0.9
    training = open_source(str(Path(named.folder.uri).parent / "train"))
    assert result.also_read == {training.folder.uri: training.manifest.digest}
    assert training.class_ids() == [sample.class_id for sample in training]
    with pytest.raises(SampleError, match=r"few_shot learns from: .*is the set itself"):
        EVALUATIONS["few_shot"](trained, training, OPTIONS)
    alone = write_samples(tmp_path / "alone" / "test", colour_samples(8))
    with pytest.raises(SampleError, match=r"few_shot learns from: .*is none"):
        EVALUATIONS["few_shot"](trained, open_source(str(alone)), OPTIONS)
    write_samples(tmp_path / "alone" / "train", colour_samples(20))
    with pytest.raises(SampleError, match="class 0 has 5 samples; expected at least 10"):
        EVALUATIONS["few_shot"](trained, open_source(str(alone)), OPTIONS)


def test_an_attack_is_counted_against_a_blank_label(trained, named):
    result = check(EVALUATIONS["typographic"](trained, named, OPTIONS))
    assert result.metrics["accuracy"] == pytest.approx(
        EVALUATIONS["zero_shot"](trained, named, OPTIONS).metrics["accuracy"]
    )
    assert result.metrics["attacked_accuracy"] <= result.metrics["accuracy"]
    assert result.floors["flip_rate"].keys() == {"blank label"}


def test_a_model_that_reads_needs_the_words_and_not_their_case(trained, named, tmp_path):
    result = check(EVALUATIONS["behaviour"](trained, named, OPTIONS))
    metrics = result.metrics
    assert metrics["accuracy"] == metrics["upper_case_accuracy"] > 0.9
    # All texts alike: rounding decides which of them is the nearest.
    assert metrics["blank_accuracy"] < 0.6
    assert metrics["swapped_accuracy"] < 0.1
    assert metrics["upside_down_accuracy"] < metrics["accuracy"]
    same = [s._replace(captions=["grey"]) for s in colour_samples(8)]
    with pytest.raises(SampleError, match="all pictures have the caption 'grey'"):
        source = open_source(str(write_samples(tmp_path / "same", same)))
        EVALUATIONS["behaviour"](trained, source, OPTIONS)


def test_the_gap_has_a_floor_and_a_picture(trained, named):
    result = check(EVALUATIONS["modality_gap"](trained, named, OPTIONS))
    assert result.metrics["pair_similarity"] > max(result.floors["pair_similarity"].values())
    picture = result.pictures["embeddings"]
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)[::7].tolist()}
    assert len(colours) >= 4, "white, axes, pictures and captions"


def test_pictures_that_cannot_be_decoded_are_left_out_and_counted(trained, named, tmp_path):
    """The others keep their captions, and the gallery finds their files again."""
    samples = list(named)
    broken = [samples[0]._replace(image=b"no picture"), samples[1]._replace(image=None)]
    source = open_source(str(write_samples(tmp_path / "some", [*broken, *samples])))
    found, whole = (EVALUATIONS["retrieval"](trained, data, OPTIONS) for data in (source, named))
    assert (found.num_rejected, found.num_samples) == (2, len(samples))
    assert found.metrics == whole.metrics
    np.testing.assert_array_equal(found.pictures["gallery"], whole.pictures["gallery"])
    only = open_source(str(write_samples(tmp_path / "none", broken)))
    for task in ("zero_shot", "typographic"):
        with pytest.raises(SampleError, match="not one of 2 pictures can be decoded"):
            EVALUATIONS[task](trained, only, OPTIONS)


def test_chance_of_retrieval_is_what_random_embeddings_get(trained, named):
    result = check(EVALUATIONS["retrieval"](trained, named, OPTIONS))
    assert result.floors["text_to_image_recall@5"] == {"chance": pytest.approx(5 / 60)}
    assert result.metrics["text_to_image_recall@1"] >= 0


def test_texts_get_the_class_that_they_name(trained, tmp_path):
    samples = [
        RawSample(f"t{n}", None, [NAMES[n % 4]], n % 4 if n else 1, languages=["en"])
        for n in range(20)
    ]
    source = text_set(tmp_path / "texts", samples, "labelled-text", tuple(NAMES))
    result = check(EVALUATIONS["text_zero_shot"](trained, source, OPTIONS))
    assert result.metrics["accuracy"] == 19 / 20, "one label is wrong"
    assert result.floors["accuracy"] == {"chance": 0.25, "most frequent class": 0.3}
    several = EvaluationOptions(text_templates=("sentiment5", "the {}"))
    details = EVALUATIONS["text_zero_shot"](trained, source, several).details
    assert len(details["templates"]) == 6
    pairs = [sample._replace(captions=["a", "b"]) for sample in samples]
    source = text_set(tmp_path / "pairs", pairs, "labelled-text", tuple(NAMES))
    with pytest.raises(SampleError, match=r"20 samples are not 1 text each, e\.g\. t0"):
        EVALUATIONS["text_zero_shot"](trained, source, OPTIONS)


def test_frozen_features_tell_texts_of_the_training_set_beside(trained, tmp_path):
    for split, count in (("train", 40), ("test", 20)):
        samples = [
            RawSample(f"t{n}", None, [f"{NAMES[n % 4]} {n // 4}"], n % 4) for n in range(count)
        ]
        text_set(tmp_path / "topics" / split, samples, "labelled-text", tuple(NAMES))
    source = open_source(str(tmp_path / "topics" / "test"))
    result = check(EVALUATIONS["text_probe"](trained, source, OPTIONS))
    assert result.metrics["probe_accuracy"] > 0.9
    assert result.metrics["neighbour_accuracy"] > 0.9
    assert set(result.intervals) == set(result.metrics)
    assert result.floors["probe_accuracy"] == {"chance": 0.25, "most frequent class": 0.25}
    assert len(result.also_read) == 1
    alone = text_set(
        tmp_path / "alone", [RawSample("t", None, ["red"], 0)], "labelled-text", ("a",)
    )
    with pytest.raises(SampleError, match="which text_probe learns from"):
        EVALUATIONS["text_probe"](trained, alone, OPTIONS)


def test_similarity_is_held_against_common_letters(trained, tmp_path):
    pairs = [("red", "red"), ("red", "reds"), ("blue", "green"), ("grey", "a blue tree")]
    samples = [RawSample(f"p{n}", None, list(pair), score=4.0 - n) for n, pair in enumerate(pairs)]
    source = text_set(tmp_path / "similar", samples, "labelled-text")
    result = check(EVALUATIONS["text_similarity"](trained, source, OPTIONS))
    assert result.metrics["spearman"] > 0
    floors = result.floors["spearman"]
    assert floors["one score for all"] == 0
    assert floors["letters in common"] > 0.7
    bare = [sample._replace(score=None) for sample in samples]
    with pytest.raises(SampleError, match="without a score, 4 of them"):
        source = text_set(tmp_path / "bare", bare, "labelled-text")
        EVALUATIONS["text_similarity"](trained, source, OPTIONS)


def test_translations_that_look_alike_are_found(trained, tmp_path):
    words = ["red", "a blue boat", "green green", "old grey houses", "ab cd", "wwwwww"]
    samples = [
        RawSample(f"r{n}", None, [word, f"{word}.", word[::-1]], languages=["en", "xx", "yy"])
        for n, word in enumerate(words)
    ]
    samples[0] = samples[0]._replace(captions=["red", "red."], languages=["en", "xx"])
    source = text_set(tmp_path / "bitext", samples, "parallel-texts")
    result = check(EVALUATIONS["bitext_retrieval"](trained, source, OPTIONS))
    per_language = result.details["per_language"]
    assert (result.details["pivot"], list(per_language)) == ("en", ["xx", "yy"])
    assert per_language["xx"]["mean_recall@1"] > per_language["xx"]["chance_recall@1"]
    assert per_language["yy"]["chance_recall@1"] == 1 / 5
    assert result.floors["mean_recall@1"]["chance"] == pytest.approx((1 / 5 + 1 / 6) / 2)
    lonely = [sample._replace(captions=sample.captions[:1], languages=["en"]) for sample in samples]
    with pytest.raises(SampleError, match="no two languages have two rows in common"):
        source = text_set(tmp_path / "lonely", lonely, "parallel-texts")
        EVALUATIONS["bitext_retrieval"](trained, source, OPTIONS)


def inked_patches(text: str) -> int:
    """Of a text of one row: the patches, 16 px wide, in which a pixel is ink."""
    renderer = TextRenderer(RenderConfig(image_size_px=1024))
    row = renderer.render(text)[:16, :, 0]
    return sum((row[:, x : x + 16] == 0).any() for x in range(0, 1024, 16))


def test_lengths_are_measured_on_other_texts_than_the_vocabulary(trained, tmp_path):
    generator = np.random.default_rng(0)
    english = ["all", "human", "beings", "are", "born", "free", "and", "equal", "in", "dignity"]
    samples = []
    for number in range(40):
        words = generator.choice(english, 12).tolist()
        captions = [" ".join(words), "人人生而自由在尊严和权利上一律平等"[: 5 + number % 9]]
        samples.append(RawSample(f"r{number}", None, captions, languages=["en", "zh"]))
    source = text_set(tmp_path / "lengths", samples, "parallel-texts")
    result = check(EVALUATIONS["sequence_length"](trained, source, OPTIONS))
    per_language = result.details["per_language"]
    assert per_language["en"]["texts"] == 20, "every other one trains the vocabulary"
    assert per_language["zh"]["bytes"] == pytest.approx(3 * per_language["zh"]["characters"])
    assert per_language["zh"]["patches"] == np.mean(
        [inked_patches(sample.captions[1]) for sample in samples[::2]]
    )
    assert result.metrics["patches_per_byte"] < 1
    assert 12 <= per_language["en"]["xlm_roberta"] < 15, "words that XLM-RoBERTa has, nearly all"
    assert result.pictures["lengths"].shape[1] > 600
    with pytest.raises(SampleError, match="needs two or more"):
        EVALUATIONS["sequence_length"](trained, source, EvaluationOptions(limit=1))


def test_filters_need_no_data(trained):
    result = check(WITHOUT_DATA["patch_filters"](trained))
    floors = result.floors["explained_by_10"]
    assert result.metrics["explained_by_10"] > floors["all components alike"]
    assert parse_benchmark("patch_filters").source == ""
    with pytest.raises(ConfigError, match="looks at the model alone"):
        parse_benchmark("patch_filters:somewhere")
    with pytest.raises(ConfigError, match="zero_shot needs a data set"):
        parse_benchmark("zero_shot")


@pytest.mark.parametrize("task", sorted(EVALUATIONS))
def test_a_set_of_another_kind_is_refused_with_what_is_needed(task, tmp_path, reference):
    """Texts for evaluations of pictures, pictures for those of texts; none crashes in the model."""
    model = load_checkpoint(reference / "big_vision_checkpoint.npz")
    texts = [RawSample(f"t{n}", None, ["one text"]) for n in range(3)]
    pictures = [s._replace(captions=None, class_id=None) for s in colour_samples(3)]
    sources = [
        text_set(tmp_path / "texts", texts, "labelled-text"),
        open_source(str(write_samples(tmp_path / "pictures", pictures))),
    ]
    evaluation: Callable[..., TaskResult] = EVALUATIONS[task]
    wrong = sources[1:] if task == "sequence_length" else sources
    for source in wrong:
        with pytest.raises(SampleError, match=source.name):
            evaluation(model, source, OPTIONS)


def test_every_evaluation_is_in_the_docs():
    docs = (Path(__file__).parents[2] / "docs" / "evaluations.md").read_text()
    for name in (*EVALUATIONS, *WITHOUT_DATA):
        assert f"\n| `{name}` |" in docs, name
