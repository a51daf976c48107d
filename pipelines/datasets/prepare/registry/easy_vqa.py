"""easy-VQA: questions about pictures of one coloured shape, with thirteen possible answers.

From the PyPI package `easy-vqa`. Each picture is stored once, beside the shards of its split, and
several rows refer to it. What training questions say of a picture is its caption in a third set,
from which a model learns such pictures before it is asked about them.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import ImageReference, RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_pypi_package
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

_PACKAGE = ("easy-vqa", "1.0")
_SPLITS = ("train", "test")
_CAPTIONS = "captions"
_LICENCE, _ORIGIN = "MIT (Victor Zhou)", "easy-VQA 1.0"
_EXPECTED = {
    "train pictures": 4_000,
    "train questions": 38_575,
    "test pictures": 1_000,
    "test questions": 9_673,
    "captions": 3_816,
    "answers": 13,
}


@dataclass(frozen=True)
class Split:
    """A published split.

    Attributes:
        pictures: PNG files by their number.
        questions: question, answer, and number of the picture.
    """

    pictures: dict[int, bytes]
    questions: list[tuple[str, str, int]]


def prepare_easy_vqa(out: Location) -> list[Location]:
    """Write the sets `out/train`, `out/captions` and `out/test`; nothing is done if all are there.

    Returns:
        The folders, in this order.

    Raises:
        SampleError: if the package cannot be fetched, or is not the known one.
    """
    folders = [out / name for name in ("train", _CAPTIONS, "test")]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        splits, answers = read_easy_vqa(unpack_pypi_package(*_PACKAGE, Path(scratch)))
    found = {"answers": len(answers)}
    for name, split in splits.items():
        found |= {f"{name} pictures": len(split.pictures)}
        found |= {f"{name} questions": len(split.questions)}
        if name == "train":
            found["captions"] = len(captions_of(split))
    check_counts("easy_vqa", found, _EXPECTED)
    return write_easy_vqa(splits, answers, out)


def read_easy_vqa(package: Path) -> tuple[dict[str, Split], list[str]]:
    """The splits in an unpacked package, and all answers.

    Raises:
        SampleError: if a file is missing or laid out otherwise.
    """
    data = package / "easy_vqa" / "data"
    try:
        answers = (data / "answers.txt").read_text(encoding="utf-8").split()
        splits = {name: _read_split(data / name) for name in _SPLITS}
    except (OSError, ValueError) as error:
        raise SampleError(f"the package {_PACKAGE[0]} cannot be read: {error}") from None
    return splits, answers


def write_easy_vqa(
    splits: dict[str, Split], answers: Sequence[str], out: Location
) -> list[Location]:
    """Write splits with their pictures beside them, and captions; returns the folders."""
    folders = []
    for name, split in splits.items():
        _write_split(out / name, name, split, list(answers))
        folders.append(out / name)
        if name == "train":
            _write_captions(out / _CAPTIONS, split)
            folders.append(out / _CAPTIONS)
    return folders


def captions_of(split: Split) -> dict[int, str]:
    """What open questions say of each picture, its colour first: "blue circle", or a part of it.

    Pictures of which only yes or no is known are left out.
    """
    told: dict[int, set[tuple[bool, str]]] = defaultdict(set)
    for question, answer, number in split.questions:
        if answer not in ("yes", "no") and number in split.pictures:
            told[number].add(("color" not in question, answer))
    return {
        number: " ".join(answer for _, answer in sorted(answers))
        for number, answers in sorted(told.items())
    }


def _read_split(folder: Path) -> Split:
    pictures = {
        int(file.stem): file.read_bytes() for file in sorted((folder / "images").glob("*.png"))
    }
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return Split(pictures, [(question, answer, int(number)) for question, answer, number in rows])


def _write_split(folder: Location, name: str, split: Split, answers: list[str]) -> None:
    writer = ShardWriter(
        folder,
        name=f"easy_vqa-{name}",
        kind="image-question",
        class_names=answers,
        licence=_LICENCE,
        origin=_ORIGIN,
        evaluation_only=name == "test",
    )
    pictures = split.pictures.items()
    for number, content in progress(
        writer.name, unit="picture", total=len(pictures), iterable=pictures
    ):
        (folder / _picture_path(number)).write_bytes(content)
    for row, (question, answer, number) in enumerate(split.questions):
        key = f"{name}-{row:05d}"
        if number not in split.pictures:
            writer.reject(key, "missing_image", str(number))
        elif answer not in answers:
            writer.reject(key, "unknown_answer", answer)
        else:
            writer.add(
                RawSample(
                    key,
                    None,
                    [answer],
                    answers.index(answer),
                    languages=["en"],
                    question=question,
                    image_at=ImageReference(_picture_path(number)),
                )
            )
    writer.close()


def _write_captions(folder: Location, split: Split) -> None:
    writer = ShardWriter(folder, name="easy_vqa-captions", licence=_LICENCE, origin=_ORIGIN)
    for number, caption in captions_of(split).items():
        writer.add(
            RawSample(f"{number:04d}", split.pictures[number], [caption], None, languages=["en"])
        )
    writer.close()


def _picture_path(number: int) -> str:
    return f"pictures/{number}.png"
