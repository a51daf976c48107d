"""Class names in many languages: as captions, as groups of equal pairs, and as a test."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clippo_core.config import ClippoConfig, OptimConfig, RenderConfig, ScheduleConfig, VitConfig
from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.scripts import script_of
from clippo_core.modeling import Clippo
from pipelines.config.derived import derive, warnings_of
from pipelines.config.resolution import resolve
from pipelines.config.settings import EvaluationOptions, RunConfig
from pipelines.datasets.manifest import Manifest
from pipelines.datasets.prepare.registry.fashion_mnist import CLASS_NAMES
from pipelines.datasets.prepare.registry.fashion_names import (
    EMOJI_OF_CLASS,
    HELD_OUT_LOCALES,
    class_names_by_locale,
)
from pipelines.datasets.sources import Source, open_source
from pipelines.evaluation.multilingual_tasks import READ_FROM, multilingual_zero_shot
from pipelines.serving.application import _about_collection, usual_score
from pipelines.serving.collection import Collection, EmbeddedPictures
from pipelines.stream.batch import prepare_batch
from pipelines.training.run import said_of_groups
from tests.integration.colours import COLOURS, colour_samples, write_samples
from tests.integration.fashion import write_fashion


@pytest.fixture(scope="module")
def tiny_model() -> Clippo:
    torch.manual_seed(0)
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    return Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64))).eval()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("fashion")
    write_fashion(cache, train=80, test=40)
    return cache / "fashion_mnist"


def named(fashion: Path) -> Source:
    return open_source(str(fashion / "names" / "train"))


def test_the_table_has_eight_different_names_in_118_locales():
    table = class_names_by_locale()
    assert len(table) == 118
    assert set(HELD_OUT_LOCALES) < set(table)
    for locale, names in table.items():
        assert set(names) == set(EMOJI_OF_CLASS), locale
        assert len({name.casefold() for name in names.values()}) == len(names), locale
    assert len({name for names in table.values() for name in names.values()}) == 834


def test_names_are_the_captions_of_photos_and_some_languages_are_for_the_test_alone(fashion: Path):
    train, test = named(fashion), open_source(str(fashion / "test"))
    table = class_names_by_locale()
    for sample in train:
        name = CLASS_NAMES[sample.class_id or 0]
        wanted = {locale: names[name] for locale, names in table.items()}
        for held_out in HELD_OUT_LOCALES:
            del wanted[held_out]
        assert dict(zip(sample.languages or (), sample.captions or (), strict=True)) == wanted
    assert {CLASS_NAMES[sample.class_id or 0] for sample in train} == set(EMOJI_OF_CLASS)
    assert len(test.manifest.class_captions) == 118
    assert test.manifest.evaluation_only
    assert test.manifest.held_out_languages == HELD_OUT_LOCALES


def test_other_class_captions_are_another_data_set(fashion: Path):
    source = named(fashion)
    rows = source.shards
    changed = dict(source.manifest.class_captions)
    changed["de"] = tuple(reversed(changed["de"]))
    other = dataclasses.replace(source.manifest, class_captions=changed)
    with pytest.raises(SampleError, match=r"is not the one that manifest\.json was"):
        _ = Source(source.folder, other).shards
    assert len(rows) == 1
    with pytest.raises(ConfigError, match="class_captions has 1 names in 'de' for 2 classes"):
        Manifest(name="short", class_names=("a", "b"), class_captions={"de": ("x",)})


def config_of(*sources: Path, **train: object) -> RunConfig:
    config = RunConfig()
    render = RenderConfig(image_size_px=64)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, render=render),
        optim=OptimConfig(schedule=ScheduleConfig(warmup_steps=None, cooldown_steps=None)),
        data=dataclasses.replace(config.data, sources=tuple(map(str, sources)), run_length=4),
        train=dataclasses.replace(config.train, global_batch_size=32, steps=50, **train),
    )


def test_pairs_of_one_class_are_one_group_in_any_set_and_language(fashion: Path):
    resolved = resolve(config_of(fashion / "train", fashion / "names" / "train"))
    batch = prepare_batch(resolved.stream, resolved.stream.plan.batch(0), step=0)
    numbers = {
        sample.key: (source.name, sample.class_id)
        for source in resolved.sources
        for sample in source
    }
    assert len(numbers) == 80, "keys are the same in both sets, and so are their classes"
    classes = [numbers[key][1] for key in batch.keys]
    for one, group in zip(classes, batch.groups, strict=True):
        for other, also in zip(classes, batch.groups, strict=True):
            assert (one == other) == (group == also)


def test_without_classes_pairs_with_captions_that_look_alike_are_one_group(tmp_path: Path):
    texts = ["A Red Car", "a red car", "a blue car", "a blue car" + " and more" * 40]
    texts.append(f"{texts[-1]} beyond the canvas")
    samples = [
        sample._replace(captions=[texts[number % 5]], class_id=None)
        for number, sample in enumerate(colour_samples(40))
    ]
    place = write_samples(tmp_path / "plain", samples)
    resolved = resolve(config_of(place, positives="equal"))
    batch = prepare_batch(resolved.stream, resolved.stream.plan.batch(0), step=0)
    number_of = {sample.key: number % 5 for number, sample in enumerate(samples)}
    look = {0: "red", 1: "red", 2: "blue", 3: "long", 4: "long"}
    looks = [look[number_of[key]] for key in batch.keys]
    assert set(looks) == {"red", "blue", "long"}
    groups = dict(zip(looks, batch.groups.tolist(), strict=True))
    assert [groups[one] for one in looks] == batch.groups.tolist()
    assert len(set(groups.values())) == 3
    assert said_of_groups(resolved) == []


def test_a_set_without_classes_is_named_once_where_equal_pairs_are_positives(tmp_path: Path):
    place = write_samples(tmp_path / "plain", colour_samples(8))
    resolved = resolve(config_of(place, positives="equal"))
    assert said_of_groups(resolved) == []
    bare = dataclasses.replace(resolved.sources[0].manifest, class_names=())
    source = dataclasses.replace(resolved.sources[0], manifest=bare)
    (line,) = said_of_groups(dataclasses.replace(resolved, sources=(source,)))
    assert line.startswith("colours has no classes")
    pairs = dataclasses.replace(resolved.config.train, positives="pair")
    config = dataclasses.replace(resolved.config, train=pairs)
    assert said_of_groups(dataclasses.replace(resolved, config=config, sources=(source,))) == []


def test_accuracies_are_those_of_one_language_after_the_other(fashion: Path, tiny_model: Clippo):
    source = open_source(str(fashion / "test"))
    found = multilingual_zero_shot(tiny_model, source, EvaluationOptions())
    rows = [s for s in source if CLASS_NAMES[s.class_id or 0] in EMOJI_OF_CLASS]
    images = tiny_model.encode_images(
        [Image.open(io.BytesIO(sample.image or b"")).convert("RGB") for sample in rows]
    )
    labels = [CLASS_NAMES[sample.class_id or 0] for sample in rows]
    expected = {}
    for locale, names in class_names_by_locale().items():
        classes = list(names)
        nearest = (images @ tiny_model.encode_texts(list(names.values())).T).argmax(1)
        expected[locale] = np.mean(
            [classes[n] == label for n, label in zip(nearest, labels, strict=True)]
        )
    per_language = {c: row["accuracy"] for c, row in found.details["per_language"].items()}
    assert per_language == pytest.approx(expected)
    trained = [value for c, value in expected.items() if c not in HELD_OUT_LOCALES]
    held_out = [expected[locale] for locale in HELD_OUT_LOCALES]
    of_typos = [
        row["typo_accuracy"]
        for language, row in found.details["per_language"].items()
        if language not in HELD_OUT_LOCALES
    ]
    wanted = found.metrics | (
        {
            "accuracy": np.mean(trained),
            "least_accuracy": min(trained),
            "languages_read": sum(value >= READ_FROM for value in trained),
            "languages": 108,
            "held_out_accuracy": np.mean(held_out),
            "held_out_least_accuracy": min(held_out),
            "held_out_languages_read": sum(value >= READ_FROM for value in held_out),
            "held_out_languages": 10,
            "deviation_over_languages": np.std(trained),
            "typo_accuracy": np.mean(of_typos),
        }
    )
    assert found.metrics == pytest.approx(wanted)
    assert found.floors["accuracy"] == {"chance": 1 / 8}
    assert set(found.pictures) == {"scripts", "words"}


def test_a_set_without_names_in_languages_is_refused(colours: Path, tiny_model: Clippo):
    with pytest.raises(SampleError, match=r"no class names in languages.*fashion_mnist/test"):
        multilingual_zero_shot(tiny_model, open_source(str(colours)), EvaluationOptions())


def test_scripts_of_texts():
    found = [script_of(text) for text in ("t-shirt", "Тенниска!", "Tシャツ", "ジーンズ", "42 ?")]
    assert found == ["Latin", "Cyrillic", "Katakana", "Katakana", ""]


def test_visits_of_a_text_form_are_counted_and_few_are_warned_of(fashion: Path, tmp_path: Path):
    config = config_of(fashion / "names" / "train")
    visits = derive(resolve(config))["visits_per_text_form"]
    table = class_names_by_locale()
    names = {n for c, row in table.items() if c not in HELD_OUT_LOCALES for n in row.values()}
    forms = len({name.casefold() for name in names})
    assert visits == {"fashion_mnist-names-train": pytest.approx(50 * 32 / forms, abs=0.05)}
    (warning,) = warnings_of({"visits_per_text_form": visits})
    assert warning.startswith("fashion_mnist-names-train: each caption will be seen")
    place = write_samples(tmp_path / "colours", colour_samples(4 * len(COLOURS)))
    derived = derive(resolve(config_of(place)))
    assert derived["visits_per_text_form"] == {"colours": 50 * 32 / 20}
    assert not [line for line in warnings_of(derived) if "each caption" in line]


def collection_of(source: Source, model: Clippo) -> Collection:
    rows = list(source)
    images = [Image.open(io.BytesIO(row.image or b"")).convert("RGB") for row in rows]
    pictures = EmbeddedPictures(
        rows=tuple(range(len(rows))),
        keys=tuple(row.key for row in rows),
        captions=tuple((row.captions or [""])[0] or "" for row in rows),
        embeddings=model.encode_images(images),
    )
    return Collection(source.name, "data set", source.folder.uri, pictures)


def test_the_page_offers_queries_in_several_scripts(fashion: Path, tiny_model: Clippo):
    collection = collection_of(open_source(str(fashion / "test")), tiny_model)
    examples = _about_collection(collection)["examples"]
    assert len(examples) == 8
    scripts = {script_of(text) for text in examples}
    assert {"Latin", "Cyrillic", "Arabic"} <= scripts
    assert len(scripts) >= 5


def test_a_text_is_far_where_nearly_all_known_ones_are_nearer(fashion: Path, tiny_model: Clippo):
    collection = collection_of(open_source(str(fashion / "test")), tiny_model)
    usual = usual_score(tiny_model, collection)
    assert usual is not None
    known = [name for names in class_names_by_locale().values() for name in names.values()]
    best = (tiny_model.encode_texts(known) @ collection.pictures.embeddings.T).max(axis=1)
    assert 0.9 < (best >= usual).mean() < 1
    few = dataclasses.replace(collection.pictures, captions=("a",) * len(collection))
    bare = dataclasses.replace(collection, kind="pictures", pictures=few)
    assert usual_score(tiny_model, bare) is None
