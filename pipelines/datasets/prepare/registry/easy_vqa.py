"""easy-VQA: questions about pictures of one coloured shape, with thirteen possible answers.

The PyPI package `easy-vqa` brings them. Each picture is stored once, beside the shards of its
split, and several rows refer to it. A picture's training questions give its caption in a third set,
from which a model learns such pictures before it is asked about them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.datasets.manifest import ImageReference, Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_pypi_package
from pipelines.datasets.prepare.rows import SPLITS, RejectedRow, Row, write_rows, write_splits
from pipelines.runtime.storage import Location

_PACKAGE = ("easy-vqa", "1.0")


@dataclass(frozen=True)
class Split:
    """A published split.

    Attributes:
        pictures: PNG files by their number.
        questions: tuples of a question, an answer, and the number of the picture.
    """

    pictures: dict[int, bytes]
    questions: list[tuple[str, str, int]]


def read_easy_vqa(package: Path) -> tuple[dict[str, Split], list[str]]:
    """Return the splits in an unpacked package, and all answers."""
    data = package / "easy_vqa" / "data"
    with reading(f"the package {_PACKAGE[0]}"):
        answers = (data / "answers.txt").read_text(encoding="utf-8").split()
        return {name: _read_split(data / name) for name in SPLITS}, answers


def write_easy_vqa(
    splits: Mapping[str, Split], answers: Sequence[str], out: Location
) -> list[Location]:
    """Write splits with their pictures beside them, and captions; return the folders."""
    about = Manifest(name="easy_vqa", licence="MIT (Victor Zhou)", origin="easy-VQA 1.0")
    questions = replace(about, kind="image-question", class_names=tuple(answers))
    for name, split in splits.items():
        for number, content in split.pictures.items():
            (out / name / _picture_path(number)).write_bytes(content)
    rows = {name: _question_rows(name, split, answers) for name, split in splits.items()}
    train, test = write_splits(out, questions, rows)
    captions = replace(about, name="easy_vqa-captions")
    return [train, write_rows(out / "captions", captions, _caption_rows(splits["train"])), test]


def captions_of(split: Split) -> dict[int, str]:
    """Return a caption of each picture from its open questions: "blue circle", or a part of it.

    Pictures of which only yes or no is known are left out.
    """
    answers_of: dict[int, set[tuple[bool, str]]] = defaultdict(set)
    for question, answer, number in split.questions:
        if answer not in ("yes", "no") and number in split.pictures:
            answers_of[number].add(("color" not in question, answer))
    return {
        number: " ".join(answer for _, answer in sorted(answers))
        for number, answers in sorted(answers_of.items())
    }


def _read_split(folder: Path) -> Split:
    files = sorted((folder / "images").glob("*.png"))
    pictures = {int(file.stem): file.read_bytes() for file in files}
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return Split(pictures, [(question, answer, int(number)) for question, answer, number in rows])


def _question_rows(name: str, split: Split, answers: Sequence[str]) -> Iterator[Row]:
    for row, (question, answer, number) in enumerate(split.questions):
        key, at = f"{name}-{row:05d}", ImageReference(_picture_path(number))
        if number not in split.pictures:
            yield RejectedRow(key, "missing_image", str(number))
        elif answer not in answers:
            yield RejectedRow(key, "unknown_answer", answer)
        else:
            sample = RawSample(key, None, [answer], answers.index(answer), languages=["en"])
            yield sample._replace(question=question, image_at=at)


def _caption_rows(split: Split) -> Iterator[Row]:
    for number, caption in captions_of(split).items():
        yield RawSample(f"{number:04d}", split.pictures[number], [caption], languages=["en"])


def _picture_path(number: int) -> str:
    return f"pictures/{number}.png"


def _count(content: tuple[dict[str, Split], list[str]]) -> dict[str, int]:
    splits, answers = content
    return {
        **{f"{name} pictures": len(split.pictures) for name, split in splits.items()},
        **{f"{name} questions": len(split.questions) for name, split in splits.items()},
        "captions": len(captions_of(splits["train"])) if "train" in splits else 0,
        "answers": len(answers),
    }


EASY_VQA = RegistrySet(
    name="easy_vqa",
    what="questions about 5,000 simple pictures, captions of them",
    folders=("train", "captions", "test"),
    read=lambda scratch: read_easy_vqa(unpack_pypi_package(*_PACKAGE, scratch)),
    count=_count,
    expected={
        "train pictures": 4_000,
        "train questions": 38_575,
        "test pictures": 1_000,
        "test questions": 9_673,
        "captions": 3_816,
        "answers": 13,
    },
    write=lambda content, out: write_easy_vqa(content[0], content[1], out),
)
