"""Public sets as they are published, on a disk and in a bucket, written small by the tests."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clippo_core.errors import ConfigError, SampleError
from pipelines.datasets.manifest import REJECTS_FILE, RawSample
from pipelines.datasets.prepare.public.cifar import prepare_cifar
from pipelines.datasets.prepare.public.coco import prepare_coco
from pipelines.datasets.prepare.public.flickr30k import prepare_flickr30k
from pipelines.datasets.prepare.public.glue import prepare_glue
from pipelines.datasets.prepare.public.imagenet import prepare_class_folders, prepare_imagenet
from pipelines.datasets.prepare.public.vqav2 import prepare_vqav2
from pipelines.datasets.prepare.public.xm3600 import prepare_xm3600
from pipelines.datasets.sources import Source, open_source
from pipelines.runtime.storage import Location


@pytest.fixture(params=["local", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place."""
    bucket = f"memory://bucket-{uuid.uuid4().hex}"
    return Location.of(tmp_path if request.param == "local" else bucket)


def picture(name: str) -> bytes:
    """A picture that is not like that of another name."""
    colour = tuple(np.random.default_rng(list(name.encode())).integers(0, 256, 3).tolist())
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Location, files: dict[str, Any]) -> Location:
    """Write files: bytes, text, or JSON."""
    for path, content in files.items():
        if isinstance(content, str):
            content = content.encode()
        elif not isinstance(content, bytes):
            content = json.dumps(content).encode()
        (folder / path).write_bytes(content)
    return folder


def write_pictures(folder: Location, *paths: str) -> Location:
    return write(folder, {path: picture(path) for path in paths})


def read(folder: Location) -> tuple[Source, list[RawSample]]:
    source = open_source(folder.uri)
    samples = list(source)
    assert source.read(range(source.num_rows)) == samples
    return source, samples


def read_shuffled(folder: Location) -> tuple[Source, list[RawSample]]:
    """Of a set that is shuffled, by key."""
    source, samples = read(folder)
    return source, sorted(samples, key=lambda sample: sample.key)


def rejects(folder: Location) -> list[tuple[str, str, str]]:
    if REJECTS_FILE not in folder.names():
        return []
    lines = (folder / REJECTS_FILE).read_bytes().decode().splitlines()
    found = [tuple(json.loads(line).values()) for line in lines]
    assert open_source(folder.uri).manifest.num_rejected == len(found)
    return found


def coco_captions(split: str, pattern: str) -> dict[str, Any]:
    return {
        "info": {"year": 2014},
        "images": [
            {"id": 9, "file_name": pattern.format(9), "height": 4, "width": 4},
            {"id": 25, "file_name": pattern.format(25), "height": 4, "width": 4},
        ],
        "annotations": [
            {"image_id": 25, "id": 1, "caption": f"A giraffe, {split}.\n"},
            {"image_id": 9, "id": 2, "caption": f"Broccoli, {split}."},
            {"image_id": 9, "id": 3, "caption": f"A box of food, {split}."},
        ],
    }


@pytest.mark.parametrize(
    ("year", "pattern"), [(2014, "COCO_{split}2014_{{:012d}}.jpg"), (2017, "{{:012d}}.jpg")]
)
def test_coco_of_either_year_comes_with_all_captions_of_a_picture(root, year, pattern):
    source = root / "coco"
    for split in ("train", "val"):
        names = pattern.format(split=split)
        content = coco_captions(split, names)
        write(source, {f"annotations/captions_{split}{year}.json": content})
        write_pictures(source, *(f"{split}{year}/{names.format(n)}" for n in (9, 25)))
    folders = prepare_coco(source, root / "out")
    assert folders == [root / "out" / "train", root / "out" / "val"]
    for split, folder in zip(("train", "val"), folders, strict=True):
        opened, samples = read(folder)
        assert opened.name == f"coco_{year}-{split}"
        assert opened.manifest.kind == "image-text"
        assert opened.manifest.evaluation_only == (split == "val")
        first, second = samples
        assert (first.key, second.key) == ("9", "25")
        assert first.captions == [f"Broccoli, {split}.", f"A box of food, {split}."]
        assert first.languages == ["en", "en"]
        assert second.captions == [f"A giraffe, {split}."]
        path = f"{split}{year}/{pattern.format(split=split).format(25)}"
        assert second.image_at is not None
        assert second.image_at.path == path
        assert second.image == picture(path)
        assert rejects(folder) == []


def test_coco_rows_that_cannot_be_used_are_listed_with_their_reasons(root):
    content = coco_captions("val", "{}.jpg")
    content["images"] += [
        {"id": 30, "file_name": "30.jpg"},
        {"id": 31, "file_name": "31.jpg"},
        {"id": 32},
        {"id": 9, "file_name": "9.jpg"},
        {"id": 33, "file_name": "../secret.jpg"},
    ]
    content["annotations"] += [
        {"image_id": 77, "id": 4, "caption": "Of no picture."},
        {"image_id": 9, "id": 5, "caption": "  \n"},
        {"image_id": 30, "id": 6, "caption": None},
        {"image_id": 31, "id": 7, "caption": "A lost picture."},
        {"image_id": 33, "id": 8, "caption": "A picture elsewhere."},
    ]
    source = write(root / "coco", {"annotations/captions_val2017.json": content})
    write_pictures(source, "val2017/9.jpg", "val2017/25.jpg", "val2017/30.jpg", "secret.jpg")
    (folder,) = prepare_coco(source, root / "out")
    assert [sample.key for sample in read(folder)[1]] == ["9", "25"]
    assert rejects(folder) == [
        ("annotation 4", "missing_image_entry", "image_id 77"),
        ("annotation 5", "blank_caption", "val2017/9.jpg"),
        ("annotation 6", "blank_caption", "val2017/30.jpg"),
        ("30", "missing_caption", "val2017/30.jpg"),
        ("31", "missing_image", "val2017/31.jpg"),
        ("32", "missing_image", "no file_name"),
        ("annotation 5", "blank_caption", "val2017/9.jpg"),
        ("9", "duplicate_key", ""),
        ("33", "missing_image", "val2017/../secret.jpg"),
    ]


def karpathy_entry(split: str, number: int, **fields: Any) -> dict[str, Any]:
    return {
        "filename": f"{number}.jpg",
        "split": split,
        "imgid": number,
        "sentences": [
            {"raw": f"First of {number}.", "tokens": ["first"], "sentid": 10 * number},
            {"raw": f"Second of {number}.", "tokens": ["second"], "sentid": 10 * number + 1},
        ],
    } | fields


def karpathy_coco(root: Location) -> Location:
    images = [
        karpathy_entry("test", 1, filepath="val2014", cocoid=101),
        karpathy_entry("restval", 2, filepath="val2014", cocoid=102),
        karpathy_entry("train", 3, filepath="train2014", cocoid=103),
        karpathy_entry("val", 4, filepath="val2014", cocoid=104),
        karpathy_entry("val", 5, filepath="val2014", cocoid=105),
        karpathy_entry("val", 6, filepath="val2014", cocoid=106, sentences=[]),
        karpathy_entry("val", 7, filepath=None, cocoid=107),
    ]
    source = write(root / "coco", {"dataset_coco.json": {"images": images, "dataset": "coco"}})
    write(source, {"annotations/captions_val2014.json": coco_captions("val", "{}.jpg")})
    return write_pictures(source, *(f"val2014/{number}.jpg" for number in (1, 2, 4, 6, 9, 25)))


def test_karpathys_split_of_coco_trains_on_what_he_calls_restval_too(root):
    source = write_pictures(karpathy_coco(root), "train2014/3.jpg")
    folders = prepare_coco(source, root / "out")
    assert [folder.name for folder in folders] == ["train", "val", "test"]
    keys, flags = [], []
    for folder in folders:
        opened, samples = read(folder)
        keys.append([sample.key for sample in samples])
        flags.append(opened.manifest.evaluation_only)
        assert all(sample.languages == ["en", "en"] for sample in samples)
    assert keys == [["102", "103"], ["104"], ["101"]]
    assert flags == [False, True, True]
    (sample,) = read(folders[2])[1]
    assert sample.captions == ["First of 1.", "Second of 1."]
    assert sample.image == picture("val2014/1.jpg")
    assert rejects(folders[1]) == [
        ("105", "missing_image", "val2014/5.jpg"),
        ("106", "missing_caption", "val2014/6.jpg"),
        ("107", "missing_image", "/7.jpg"),
    ]


def test_one_split_needs_no_pictures_of_the_others(root):
    source = karpathy_coco(root)
    with pytest.raises(SampleError, match="has no files in train2014/; it holds annotations, data"):
        prepare_coco(source, root / "out")
    assert (root / "out").names() == []
    (folder,) = prepare_coco(source, root / "out", splits=["test"])
    assert folder == root / "out" / "test"
    with pytest.raises(ConfigError, match=r"no split 'dev'; expected some of \['train', 'val'"):
        prepare_coco(source, root / "out", splits=["dev"])
    (folder,) = prepare_coco(source, root / "official", year=2014)
    assert [sample.key for sample in read(folder)[1]] == ["9", "25"]


def test_what_is_no_coco_is_told_by_what_is_there(root):
    with pytest.raises(SampleError, match=r"no annotations/captions_.*2014,2017.*holds nothing"):
        prepare_coco(root / "none", root / "out")
    source = write(root / "coco", {"annotations/instances_val2017.json": {}})
    with pytest.raises(SampleError, match=r"no captions_\{train,val\}2014.json; it holds instan"):
        prepare_coco(source, root / "out", year=2014)
    write(source, {"annotations/captions_val2017.json": b"{"})
    with pytest.raises(SampleError, match=r"captions_val2017.json is not valid JSON"):
        prepare_coco(source, root / "out")
    write(source, {"annotations/captions_val2017.json": {"images": []}})
    with pytest.raises(SampleError, match=r"no list of 'annotations'; it has \['images'\]"):
        prepare_coco(source, root / "out")
    write(source, {"annotations/captions_val2014.json": coco_captions("val", "{}.jpg")})
    with pytest.raises(SampleError, match="of 2014 and of 2017; name one by `year`"):
        prepare_coco(source, root / "out")
    with pytest.raises(SampleError, match="no files in val2014/; it holds annotations"):
        prepare_coco(source, root / "out", year=2014)
    write_pictures(source, "val2014/1000.jpg")
    with pytest.raises(SampleError, match=r"not one usable sample \(2 rejected: missing_image\)"):
        prepare_coco(source, root / "out", year=2014)
    write(source, {"dataset_coco.json": {"images": [karpathy_entry("dev", 1)]}})
    with pytest.raises(SampleError, match="has the split 'dev'; expected"):
        prepare_coco(source, root / "out")


def test_a_set_that_is_there_already_is_not_overwritten(root):
    source = karpathy_coco(root)
    prepare_coco(source, root / "out", splits=["test"])
    with pytest.raises(ConfigError, match="is a data set already; remove it"):
        prepare_coco(source, root / "out", splits=["val", "test"])
    assert (root / "out").names() == ["test"]


@pytest.mark.parametrize("pictures", ["flickr30k-images", "flickr30k_images", "images"])
def test_flickr30k_comes_in_karpathys_split(root, pictures):
    images = [
        karpathy_entry("train", 1),
        karpathy_entry("test", 2),
        karpathy_entry("val", 3),
        karpathy_entry("test", 4, sentences=[{"raw": " ", "sentid": 40}]),
    ]
    source = write(root / "flickr", {"dataset_flickr30k.json": {"images": images}})
    write(source, {"results_20130124.token": "not read"})
    write_pictures(source, *(f"{pictures}/{number}.jpg" for number in range(1, 5)))
    folders = prepare_flickr30k(source, root / "out")
    assert [folder.name for folder in folders] == ["train", "val", "test"]
    opened, (sample,) = read(folders[2])
    assert opened.name == "flickr30k-test"
    assert opened.manifest.evaluation_only
    assert sample.key == "2"
    assert sample.captions == ["First of 2.", "Second of 2."]
    assert sample.image == picture(f"{pictures}/2.jpg")
    assert rejects(folders[2]) == [
        ("sentence 40", "blank_caption", f"{pictures}/4.jpg"),
        ("4", "missing_caption", f"{pictures}/4.jpg"),
    ]


TOKEN = (
    "1.jpg#0\tTwo young guys # with shaggy hair .\n"
    "1.jpg#1\tTwo \u2028 men .\n"
    "2.jpg#0\tSeveral men | in hard hats .\n"
    "3.jpg#0\tA lost picture .\n"
    "broken line\n"
)
RESULTS = (
    "image_name| comment_number| comment\r\n"
    "1.jpg| 0| Two young guys # with shaggy hair .\r\n"
    "1.jpg| 1| Two \u2028 men .\r\n"
    "2.jpg| 0| Several men | in hard hats .\r\n"
    "3.jpg| 0| A lost picture .\r\n"
    "2.jpg| 4   A dog runs .\r\n"
)


@pytest.mark.parametrize(
    ("file", "content", "line", "broken"),
    [
        ("results_20130124.token", TOKEN, 5, "broken line"),
        ("results.csv", RESULTS, 6, "2.jpg| 4   A dog runs ."),
    ],
)
def test_the_authors_captions_of_flickr30k_are_one_set(root, file, content, line, broken):
    source = write(root / "flickr", {file: content})
    write_pictures(source, "images/1.jpg", "images/2.jpg")
    (folder,) = prepare_flickr30k(source, root / "out")
    assert folder == root / "out" / "all"
    opened, (first, second) = read(folder)
    assert not opened.manifest.evaluation_only
    assert first.captions == ["Two young guys # with shaggy hair .", "Two \u2028 men ."]
    assert first.image == picture("images/1.jpg")
    assert (second.key, second.captions) == ("2", ["Several men | in hard hats ."])
    assert rejects(folder) == [
        (f"{file}:{line}", "malformed_row", broken),
        ("3", "missing_image", "images/3.jpg"),
    ]
    with pytest.raises(ConfigError, match=f"{file} knows no splits"):
        prepare_flickr30k(source, root / "other", splits=["test"])


def test_what_is_no_flickr30k_is_told_by_what_is_there(root):
    source = write_pictures(root / "flickr", "images/1.jpg")
    with pytest.raises(
        SampleError, match=r"no dataset_flickr30k.json and no results.*holds images"
    ):
        prepare_flickr30k(source, root / "out")
    bare = write(root / "bare", {"results.csv": RESULTS})
    with pytest.raises(SampleError, match=r"no flickr30k-images/ and no .* it holds results.csv"):
        prepare_flickr30k(bare, root / "out")


SYNSETS = "n01440764 tench, Tinca tinca\nn03710637 maillot\nn03710721 maillot, tank suit\n"


def imagenet_train(source: Location, tree: str = "") -> Location:
    return write_pictures(
        source,
        f"{tree}train/n03710721/n03710721_2.JPEG",
        f"{tree}train/n01440764/n01440764_1.JPEG",
        f"{tree}train/n03710637/n03710637_3.JPEG",
    )


def test_imagenet_has_the_names_and_the_numbers_of_its_classes(root):
    source = imagenet_train(write(root / "imagenet", {"LOC_synset_mapping.txt": SYNSETS}))
    write_pictures(source, "val/n03710721/ILSVRC2012_val_00000001.JPEG")
    write_pictures(source, "val/n99999999/ILSVRC2012_val_00000002.JPEG")
    write(source, {"train/n01440764/.DS_Store": b"?"})
    train, val = prepare_imagenet(source, root / "out")
    opened, samples = read_shuffled(train)
    assert opened.manifest.class_names == ("tench", "maillot", "maillot, tank suit")
    assert not opened.manifest.evaluation_only
    assert [sample.class_id for sample in samples] == [0, 1, 2]
    assert samples[0].key == "train/n01440764/n01440764_1.JPEG"
    assert samples[0].captions == ["tench", "a photo of a tench", "a picture of a tench"]
    assert samples[0].image == picture("train/n01440764/n01440764_1.JPEG")
    opened, (sample,) = read(val)
    assert opened.manifest.class_names == ("tench", "maillot", "maillot, tank suit")
    assert opened.manifest.evaluation_only
    assert sample.class_id == 2
    assert rejects(val) == [
        ("val/n99999999/ILSVRC2012_val_00000002.JPEG", "unknown_class", "n99999999")
    ]


def test_a_flat_validation_set_has_its_classes_in_the_solution_file(root):
    tree = "ILSVRC/Data/CLS-LOC/"
    solution = (
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000002,n03710637 85 1 499 272 \n"
        "ILSVRC2012_val_00000001,n01440764 1 2 3 4 n01440764 5 6 7 8 \n"
        "ILSVRC2012_val_00000009,n01440764 1 2 3 4\n"
    )
    files = {"LOC_val_solution.csv": solution, "LOC_synset_mapping.txt": SYNSETS}
    source = imagenet_train(write(root / "imagenet", files), tree)
    names = [f"{tree}val/ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 2, 3)]
    write_pictures(source, *names)
    train, val = prepare_imagenet(source, root / "out")
    assert open_source(train.uri).num_rows == 3
    _, samples = read(val)
    assert [(sample.key, sample.class_id) for sample in samples] == [(names[0], 0), (names[1], 1)]
    assert samples[1].image == picture(names[1])
    missing = f"{tree}val/ILSVRC2012_val_00000009.JPEG"
    assert rejects(val) == [
        (names[2], "missing_class", ""),
        (missing, "missing_image", missing),
    ]


def test_a_flat_validation_set_has_its_classes_in_a_file_of_wnids(root):
    source = write(root / "imagenet", {"classes.txt": "tench\nbathing suit\n"})
    file = "imagenet_2012_validation_synset_labels.txt"
    write(source, {file: "n03710721\nn01440764\n"})
    write_pictures(source, "val/b.JPEG", "val/a.JPEG")
    (val,) = prepare_imagenet(source, root / "out")
    opened, samples = read(val)
    assert opened.manifest.class_names == ("tench", "bathing suit")
    assert [(sample.key, sample.class_id) for sample in samples] == [
        ("val/a.JPEG", 1),
        ("val/b.JPEG", 0),
    ]
    write(source, {file: "n03710721\n"})
    with pytest.raises(SampleError, match=r"has 1 lines, but val/ has 2 pictures"):
        prepare_imagenet(source, root / "other")
    write(source, {file: "490\n361\n"})
    with pytest.raises(SampleError, match=r"the line '490'; expected WNIDs.*use LOC_val_solution"):
        prepare_imagenet(source, root / "other")


def test_classes_may_be_named_by_wnid_or_in_order(root):
    source = imagenet_train(root / "imagenet")
    with pytest.raises(
        SampleError, match=r"no LOC_synset_mapping.txt or classes.txt .* holds train"
    ):
        prepare_imagenet(source, root / "out")
    write(source, {"classes.txt": "n03710637: swimsuit\nn01440764\ttench\nn03710721 tank suit\n"})
    (folder,) = prepare_imagenet(source, root / "by-wnid")
    assert open_source(folder.uri).manifest.class_names == ("tench", "swimsuit", "tank suit")
    write(source, {"classes.txt": "tench\nswimsuit\n"})
    with pytest.raises(SampleError, match="has 2 names, but there are 3 classes"):
        prepare_imagenet(source, root / "out")


def test_what_is_no_imagenet_is_told_by_what_is_there(root):
    source = write_pictures(root / "wnids", "n01440764/n01440764_1.JPEG")
    with pytest.raises(SampleError, match="no train/ and no val/; it holds n01440764"):
        prepare_imagenet(source, root / "out")
    flat = write_pictures(root / "flat", "val/a.JPEG")
    with pytest.raises(SampleError, match=r"no folders in val/ and no LOC_val_.*; it holds val"):
        prepare_imagenet(flat, root / "out")
    with pytest.raises(SampleError, match="has no files; it holds nothing"):
        prepare_imagenet(root / "none", root / "out")
    text = write(root / "text", {"train/n01440764/readme.md": "?"})
    with pytest.raises(SampleError, match="train has no pictures in it; it holds n01440764"):
        prepare_imagenet(text, root / "out")


@pytest.mark.parametrize("prepare", [prepare_class_folders, prepare_imagenet])
def test_folders_of_any_names_are_classes_of_these_names(root, prepare):
    source = write_pictures(root / "pets", "train/cat/1.jpg", "train/big_dog/a/2.PNG")
    write_pictures(source, "test/cat/3.jpg", "test/4.jpg")
    train, test = prepare(source, root / "out")
    opened, (dog, cat) = read_shuffled(train)
    assert opened.name == "pets-train"
    assert opened.manifest.class_names == ("big dog", "cat")
    assert (dog.class_id, dog.captions) == (
        0,
        ["big dog", "a photo of a big dog", "a picture of a big dog"],
    )
    assert cat.image == picture("train/cat/1.jpg")
    opened, (sample,) = read(test)
    assert opened.manifest.evaluation_only
    assert sample.class_id == 1
    assert rejects(test) == [("test/4.jpg", "missing_class", "")]


def test_class_folders_without_a_split_are_one_set(root):
    source = write_pictures(root / "pets", "cat/1.jpg", "dog/2.jpg")
    (folder,) = prepare_class_folders(source, root / "out")
    assert folder == root / "out" / "all"
    assert [s.key for s in read_shuffled(folder)[1]] == ["cat/1.jpg", "dog/2.jpg"]
    with pytest.raises(SampleError, match="no folders with pictures, one for each class"):
        prepare_class_folders(source / "cat", root / "other")


def test_class_folders_may_be_links(tmp_path):
    place = Location.of(tmp_path)
    write_pictures(place / "whole", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "cat").symlink_to(tmp_path / "whole" / "cat")
    (folder,) = prepare_class_folders(place / "part", place / "out")
    assert [sample.image for sample in read(folder)[1]] == [picture("cat/1.jpg")]


def cifar_batch(labels: list[list[int]], seed: int) -> tuple[bytes, np.ndarray]:
    """A batch, and its pictures as height x width x colour."""
    pictures = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    rows = zip(labels, pictures, strict=True)
    return b"".join(bytes(of) + p.transpose(2, 0, 1).tobytes() for of, p in rows), pictures


def cifar10() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files, the first training batch's pictures, and those of test."""
    files = {"batches.meta.txt": b"airplane\nautomobile\nbird\n\n", "readme.html": b""}
    first = None
    for number in range(1, 6):
        files[f"data_batch_{number}.bin"], pictures = cifar_batch([[2], [0]], number)
        first = pictures if first is None else first
    files["test_batch.bin"], test = cifar_batch([[1], [200]], 6)
    assert first is not None
    return files, first, test


def cifar100() -> dict[str, bytes]:
    files = {"fine_label_names.txt": b"apple\naquarium_fish\n", "coarse_label_names.txt": b"fish\n"}
    files["train.bin"], _ = cifar_batch([[0, 1]], 1)
    files["test.bin"], _ = cifar_batch([[1, 0]], 2)
    return files


def tar_gz(folder: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["folder", "parent", "archive", "parent of the archive"])
def test_cifar10_comes_from_its_folder_or_its_archive(root, form):
    files, first, test_pictures = cifar10()
    parent, name = root / "data", "cifar-10-batches-bin"
    archive = "cifar-10-binary.tar.gz"
    if "archive" in form:
        write(parent, {archive: tar_gz(name, files)})
    else:
        write(parent, {f"{name}/{file}": content for file, content in files.items()})
    source = {"folder": parent / name, "archive": parent / archive}.get(form, parent)
    train, test = prepare_cifar(source, root / "out")
    opened, samples = read(train)
    assert opened.name == "cifar10-train"
    assert opened.manifest.class_names == ("airplane", "automobile", "bird")
    assert opened.manifest.files_at is None
    assert [sample.class_id for sample in samples] == [2, 0] * 5
    assert samples[3].key == "data_batch_2.bin:1"
    assert samples[0].captions == ["bird", "a photo of a bird", "a picture of a bird"]
    for sample, pixels in zip(samples, first, strict=False):
        assert sample.image is not None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.image))), pixels)
    opened, (sample,) = read(test)
    assert opened.manifest.evaluation_only
    assert sample.class_id == 1
    assert sample.image is not None
    np.testing.assert_array_equal(Image.open(io.BytesIO(sample.image)), test_pictures[0])
    assert rejects(test) == [("test_batch.bin:1", "unknown_class", "200")]


def test_cifar100_has_its_fine_classes(root):
    source = write(root / "cifar-100-binary", cifar100())
    train, test = prepare_cifar(source, root / "out")
    opened, (sample,) = read(train)
    assert opened.name == "cifar100-train"
    assert opened.manifest.class_names == ("apple", "aquarium fish")
    assert sample.class_id == 1
    assert sample.captions is not None
    assert sample.captions[1] == "a photo of a aquarium fish"
    assert [sample.class_id for sample in read(test)[1]] == [0]


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"cifar-10-batches-py/data_batch_1": b"?"}, ""),
        ({"cifar-10-batches-py/batches.meta": b"?"}, "cifar-10-batches-py"),
        ({"cifar-100-python/meta": b"?", "cifar-100-python/train": b"?"}, "cifar-100-python"),
        ({"cifar-10-python.tar.gz": tar_gz("cifar-10-batches-py", {"data_batch_1": b"?"})}, ""),
        (
            {"c.tar.gz": tar_gz("cifar-10-batches-py", {"data_batch_1": b"?"})},
            "c.tar.gz",
        ),
    ],
)
def test_nothing_of_cifar_is_unpickled(root, files, source):
    parent = write(root / "data", files)
    with pytest.raises(SampleError, match=r"nothing is unpickled.*cifar-10-binary.tar.gz"):
        prepare_cifar(parent / source if source else parent, root / "out")


def test_what_is_no_whole_cifar_is_told_by_what_is_there(root):
    with pytest.raises(SampleError, match=r"no cifar-10-batches-bin/ or cifar-10-b.*holds nothing"):
        prepare_cifar(root / "none", root / "out")
    with pytest.raises(SampleError, match=r"data has no c.tar.gz; it holds nothing"):
        prepare_cifar(root / "data" / "c.tar.gz", root / "out")
    broken = write(root / "broken", {"c.tar.gz": b"?", "other.tar.gz": tar_gz("a", {"b": b""})})
    with pytest.raises(SampleError, match=r"c.tar.gz is no whole .tar.gz archive"):
        prepare_cifar(broken / "c.tar.gz", root / "out")
    cut = tar_gz("cifar-100-binary", cifar100())[:-2000]
    with pytest.raises(SampleError, match=r"cut.tgz is no whole .tar.gz archive"):
        prepare_cifar(write(broken, {"cut.tgz": cut}) / "cut.tgz", root / "out")
    with pytest.raises(SampleError, match=r"holds no files of cifar-10-batches-bin nor of cifar-1"):
        prepare_cifar(broken / "other.tar.gz", root / "out")
    files = cifar100()
    short = write(root / "short", files | {"test.bin": files["test.bin"][:-1]})
    with pytest.raises(
        SampleError, match=r"test.bin of .* has 3073 bytes; expected a multiple of 3074"
    ):
        prepare_cifar(short, root / "out")
    assert (root / "out").names() == []
    del files["test.bin"]
    with pytest.raises(SampleError, match=r"lacks test.bin of cifar-100-binary"):
        prepare_cifar(write(root / "part", files), root / "out")
    both = {f"cifar-100-binary/{name}": content for name, content in files.items()}
    both["cifar-10-binary.tar.gz"] = b""
    with pytest.raises(SampleError, match=r"both CIFAR-10 and CIFAR-100; name one of .*tar.gz and"):
        prepare_cifar(write(root / "both", both), root / "out")


def test_crossmodal_3600_has_the_languages_of_its_captions(root):
    tokenized = {"caption/tokenized": ["ein"], "caption/tokenized/lowercase": ["ein"]}
    lines = [
        {
            "image/key": "a1",
            "image/locale": "de",
            "en": {"caption": ["A car.", "The car."]},
            "de": {"caption": ["Ein Auto."]} | tokenized,
            "quz": {"caption": [" ", "Carro."]},
        },
        {"image/key": "b2", "image/locale": "de", "zh": {"caption": []}},
        {"image/key": "c3", "image/locale": "de", "te": {"caption": ["కారు"]}},
        {"image/locale": "de"},
        [],
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + "{\n"
    source = write(root / "xm3600", {"captions.jsonl": text})
    write_pictures(source, "images/a1.jpg", "images/b2.jpg")
    assert prepare_xm3600(source, root / "out") == [root / "out"]
    opened, (sample,) = read(root / "out")
    assert opened.name == "xm3600"
    assert opened.manifest.evaluation_only
    assert sample.key == "a1"
    assert sample.captions == ["A car.", "The car.", "Ein Auto.", "Carro."]
    assert sample.languages == ["en", "en", "de", "quz"]
    assert sample.image == picture("images/a1.jpg")
    *others, last = rejects(root / "out")
    assert others == [
        ("a1/quz/0", "blank_caption", "images/a1.jpg"),
        ("b2", "missing_caption", "images/b2.jpg"),
        ("c3", "missing_image", "images/c3.jpg"),
        ("captions.jsonl:4", "malformed_row", "no image/key"),
        ("captions.jsonl:5", "malformed_row", "no image/key"),
    ]
    assert last[:2] == ("captions.jsonl:6", "malformed_row")


def test_what_is_no_crossmodal_3600_is_told_by_what_is_there(root):
    source = write(root / "xm3600", {"captions.zip": b""})
    with pytest.raises(SampleError, match=r"has no captions.jsonl; it holds captions.zip"):
        prepare_xm3600(source, root / "out")
    write(source, {"captions.jsonl": b"\xff"})
    with pytest.raises(SampleError, match=r"captions.jsonl is not UTF-8"):
        prepare_xm3600(source, root / "out")
    write(source, {"captions.jsonl": b"{}"})
    with pytest.raises(
        SampleError, match=r"has no files in images/; it holds captions.jsonl, capt"
    ):
        prepare_xm3600(source, root / "out")


def tsv(*rows: str) -> str:
    """Rows of fields that are separated by bars here."""
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


MNLI_HEADER = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse"
    "|sentence2_parse|sentence1|sentence2|{labels}gold_label"
)
GLUE = {
    "CoLA/train.tsv": tsv("gj04|1||Our friends won't buy.", 'gj04|0|*|They "drank the pub.'),
    "CoLA/dev.tsv": tsv("gj04|1||The sailors rode."),
    "CoLA/test.tsv": tsv("index|sentence", "0|Bill whistled."),
    "SST-2/train.tsv": tsv("sentence|label", "hide new secretions |0", "lovely |1"),
    "MRPC/train.tsv": tsv("Quality|#1 ID|#2 ID|#1 String|#2 String", '1|7|8|He said.|"He" says.'),
    "MRPC/msr_paraphrase_train.txt": tsv("not read"),
    "MRPC/msr_paraphrase_test.txt": "\ufeff"
    + tsv("Quality|#1 ID|#2 ID|#1 String|#2 String", "0|9|10|One.|Two."),
    "QQP/dev.tsv": tsv("id|qid1|qid2|question1|question2|is_duplicate", "5|1|2|Why?|How?|1"),
    "STS-B/dev.tsv": tsv(
        "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
        "0|main|MSRvid|2012|1|none|none|A plane.|An air plane.|4.750",
    ),
    "MNLI/train.tsv": tsv(
        MNLI_HEADER.format(labels="label1|"), "0|1|1e|fiction|(|(|(|(|P.|H.|neutral|contradiction"
    ),
    "MNLI/dev_matched.tsv": tsv(
        MNLI_HEADER.format(labels="label1|label2|"), "0|1|1e|f|(|(|(|(|P.|H.|neutral|-|neutral"
    ),
    "MNLI/dev_mismatched.tsv": tsv(
        MNLI_HEADER.format(labels="label1|label2|"), "0|1|1e|f|(|(|(|(|Q.|I.|neutral|-|entailment"
    ),
    "QNLI/dev.tsv": tsv("index|question|sentence|label", "0|What?|This.|not_entailment"),
    "RTE/dev.tsv": tsv("index|sentence1|sentence2|label", "0|A.|B.|entailment"),
}
GLUE_CLASSES = {
    "cola": ("unacceptable", "acceptable"),
    "sst-2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "sts-b": (),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
}


def test_each_task_of_glue_has_its_texts_and_labels(root):
    source = write(root / "glue", GLUE)
    folders = prepare_glue(source, root / "out")
    found = {}
    for folder in folders:
        opened, samples = read(folder)
        task, split = folder.uri.split("/")[-2:]
        assert opened.name == f"glue_{task}-{split}"
        assert opened.manifest.kind == "labelled-text"
        assert opened.manifest.evaluation_only == (split != "train")
        assert opened.manifest.class_names == GLUE_CLASSES[task]
        assert rejects(folder) == []
        found[f"{task}/{split}"] = [(s.key, s.captions, s.class_id, s.score) for s in samples]
    assert found == {
        "cola/train": [
            ("train.tsv:1", ["Our friends won't buy."], 1, None),
            ("train.tsv:2", ['They "drank the pub.'], 0, None),
        ],
        "cola/dev": [("dev.tsv:1", ["The sailors rode."], 1, None)],
        "sst-2/train": [
            ("train.tsv:2", ["hide new secretions"], 0, None),
            ("train.tsv:3", ["lovely"], 1, None),
        ],
        "mrpc/train": [("train.tsv:2", ["He said.", '"He" says.'], 1, None)],
        "mrpc/test": [("msr_paraphrase_test.txt:2", ["One.", "Two."], 0, None)],
        "qqp/dev": [("dev.tsv:2", ["Why?", "How?"], 1, None)],
        "sts-b/dev": [("dev.tsv:2", ["A plane.", "An air plane."], None, 4.75)],
        "mnli/train": [("train.tsv:2", ["P.", "H."], 2, None)],
        "mnli/dev_matched": [("dev_matched.tsv:2", ["P.", "H."], 1, None)],
        "mnli/dev_mismatched": [("dev_mismatched.tsv:2", ["Q.", "I."], 0, None)],
        "qnli/dev": [("dev.tsv:2", ["What?", "This."], 1, None)],
        "rte/dev": [("dev.tsv:2", ["A.", "B."], 0, None)],
    }


def test_lines_of_glue_that_cannot_be_used_are_listed_with_their_reasons(root):
    files = {
        "QQP/train.tsv": tsv(
            "id|qid1|qid2|question1|question2|is_duplicate",
            "1|1|2|Why?|How?|0",
            "2|1|2|Why?",
            "3|1|2||How?|0",
            "",
            "4|1|2|Why?|How?|2",
        ),
        "STS-B/dev.tsv": tsv("sentence1|sentence2|score", "A|B|5", "A|B|high", "A|B|nan"),
    }
    qqp, sts = prepare_glue(write(root / "glue", files), root / "out")
    assert [sample.key for sample in read(qqp)[1]] == ["train.tsv:2"]
    assert rejects(qqp) == [
        ("train.tsv:3", "malformed_row", "4 fields; expected 6"),
        ("train.tsv:4", "missing_text", ""),
        ("train.tsv:6", "unknown_class", "2"),
    ]
    assert [sample.score for sample in read(sts)[1]] == [5.0]
    assert rejects(sts) == [
        ("dev.tsv:3", "unknown_score", "high"),
        ("dev.tsv:4", "unknown_score", "nan"),
    ]


def test_mrpc_comes_as_microsoft_publishes_it(root):
    header = "Quality|#1 ID|#2 ID|#1 String|#2 String"
    content = ("\ufeff" + tsv(header, "1|7|8|He said.|He says.")).replace("\n", "\r\n")
    files = {f"MRPC/msr_paraphrase_{split}.txt": content for split in ("train", "test")}
    folders = prepare_glue(write(root / "glue", files), root / "out")
    assert [folder.name for folder in folders] == ["train", "test"]
    for folder in folders:
        (sample,) = read(folder)[1]
        assert (sample.captions, sample.class_id) == (["He said.", "He says."], 1)


def test_what_is_no_glue_is_told_by_what_is_there(root):
    source = write(root / "glue", {"WNLI/train.tsv": "?"})
    with pytest.raises(SampleError, match=r"no task of GLUE: CoLA/, SST-2/, .*; it holds WNLI"):
        prepare_glue(source, root / "out")
    write(source, {"SST-2/train.csv": "?"})
    with pytest.raises(SampleError, match=r"no train.tsv and no dev.tsv; it holds train.csv"):
        prepare_glue(source, root / "out")
    write(source, {"SST-2/train.tsv": tsv("text|label", "lovely|1")})
    with pytest.raises(SampleError, match=r"no column 'sentence'; it has \['text', 'label'\]"):
        prepare_glue(source, root / "out")


def vqa_entry(split: str, number: int, answer: str, **fields: Any) -> tuple[dict, dict]:
    """A question and its annotation."""
    question = {"image_id": number, "question": f"What is {number}?", "question_id": number * 1000}
    answers = [
        {"answer": answer if n < 9 else "maybe", "answer_confidence": "yes", "answer_id": n + 1}
        for n in range(10)
    ]
    note = {
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": answer,
        "answers": answers,
        "image_id": number,
        "question_id": number * 1000,
    }
    return question | fields, note


def write_vqa(source: Location, split: str, entries: list[tuple[dict, dict]]) -> Location:
    questions, notes = zip(*entries, strict=True)
    return write(
        source,
        {
            f"v2_OpenEnded_mscoco_{split}2014_questions.json": {
                "questions": [*filter(None, questions)]
            },
            f"v2_mscoco_{split}2014_annotations.json": {"annotations": [*filter(None, notes)]},
        },
    )


def vqa_path(split: str, number: int) -> str:
    return f"{split}2014/COCO_{split}2014_{number:012d}.jpg"


def vqa(root: Location) -> Location:
    source = root / "vqa"
    answers = ["yes", "no", "no", "2", "yes", "no"]
    write_vqa(source, "train", [vqa_entry("train", n, a) for n, a in enumerate(answers)])
    val = [vqa_entry("val", n, a) for n, a in ((262148, "yes"), (7, "blue"), (8, "blue"))]
    write_vqa(source, "val", val)
    write_pictures(source, *(vqa_path("train", n) for n in range(6)))
    return write_pictures(source, *(vqa_path("val", n) for n in (262148, 7, 8)))


def test_vqav2_has_questions_with_ten_answers_and_the_frequent_ones_as_classes(root):
    train, val = prepare_vqav2(vqa(root), root / "out", min_answer_count=2)
    opened, samples = read(train)
    assert opened.manifest.kind == "image-question"
    assert opened.manifest.class_names == ("no", "yes")
    assert not opened.manifest.evaluation_only
    assert [sample.class_id for sample in samples] == [1, 0, 0, None, 1, 0]
    opened, samples = read(val)
    assert opened.manifest.class_names == ("no", "yes")
    assert opened.manifest.evaluation_only
    assert [sample.class_id for sample in samples] == [1, None, None]
    first = samples[0]
    assert first.key == "262148000"
    assert first.question == "What is 262148?"
    assert first.captions == ["yes"] * 9 + ["maybe"]
    assert first.image == picture("val2014/COCO_val2014_000000262148.jpg")
    assert rejects(train) == rejects(val) == []


@pytest.mark.parametrize(
    ("options", "class_names"),
    [
        ({"min_answer_count": 1}, ("no", "yes", "2")),
        ({"min_answer_count": 1, "num_answers": 1}, ("no",)),
        ({"min_answer_count": 2, "answers_of": "train+val"}, ("no", "yes", "blue")),
    ],
)
def test_the_frequent_answers_of_vqav2_are_as_many_as_asked_for(root, options, class_names):
    for folder in prepare_vqav2(vqa(root), root / "out", **options):
        assert open_source(folder.uri).manifest.class_names == class_names


def test_questions_that_cannot_be_used_are_listed_with_their_reasons(root):
    entries: list[Any] = [vqa_entry("train", number, "yes") for number in range(7)]
    entries[1] = (entries[1][0], None)
    entries[2] = (None, entries[2][1])
    entries[3] = (entries[3][0] | {"question": " "}, entries[3][1])
    entries[4] = (entries[4][0], entries[4][1] | {"answers": [{"answer": None}]})
    entries[5] = (entries[5][0] | {"image_id": None}, entries[5][1])
    source = write_vqa(root / "vqa", "train", entries)
    write_pictures(source, *(vqa_path("train", number) for number in range(6)))
    (folder,) = prepare_vqav2(source, root / "out", min_answer_count=1)
    assert [sample.key for sample in read(folder)[1]] == ["0"]
    assert rejects(folder) == [
        ("1000", "missing_annotation", ""),
        ("3000", "missing_question", ""),
        ("4000", "missing_answer", ""),
        ("5000", "missing_image", "image_id None"),
        ("6000", "missing_image", vqa_path("train", 6)),
        ("2000", "missing_question", ""),
    ]


def test_what_is_no_vqav2_is_told_by_what_is_there(root):
    source = root / "vqa"
    write_vqa(source, "val", [vqa_entry("val", 1, "yes")])
    write_pictures(source, vqa_path("val", 1))
    with pytest.raises(
        SampleError, match=r"no v2_OpenEnded_mscoco_train2014_questions.json and no v2"
    ):
        prepare_vqav2(source, root / "out")
    write_vqa(source, "train", [vqa_entry("train", 1, "yes")])
    with pytest.raises(SampleError, match=r"no files in train2014/; it holds v2_Open.*, val2014"):
        prepare_vqav2(source, root / "out")
    write_pictures(source, vqa_path("train", 1))
    with pytest.raises(SampleError, match=r"no answer is that of min_answer_count=9 questions"):
        prepare_vqav2(source, root / "out")
