"""VQAv2 (arXiv:1612.00837): questions about COCO's pictures, with ten people's answers each.

    SOURCE/v2_OpenEnded_mscoco_{train,val}2014_questions.json
    SOURCE/v2_mscoco_{train,val}2014_annotations.json
    SOURCE/{train,val}2014/COCO_{train,val}2014_000000000009.jpg

The test questions have no answers and are left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import ImageReference, Manifest, RawSample, refuse_prepared
from pipelines.datasets.prepare.public import published
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.runtime.storage import Location

#: Names of the two files of each split.
_FILES = {
    split: (
        f"v2_OpenEnded_mscoco_{split}2014_questions.json",
        f"v2_mscoco_{split}2014_annotations.json",
    )
    for split in ("train", "val")
}
Records = list[dict[str, Any]]


def prepare_vqav2(
    source: Location,
    out: Location,
    *,
    num_answers: int = 3129,
    min_answer_count: int = 9,
    answers_of: Literal["train", "train+val"] = "train",
) -> list[Location]:
    """Write VQAv2: `out/train` and `out/val`, which is for evaluation only.

    A key is the question's id; `captions` are the answers; the class is the answer that most people
    gave, if it is frequent: the class names of both sets are the frequent answers.

    3,129 answers are what arXiv:1708.02711 counts with nine questions or more. The public code that
    arrives at them counts train and val together and normalizes words first; here answers are as
    published, and val counts only where `answers_of` says so: train alone has fewer such answers.

    Args:
        source: the folder with the JSON files and the pictures' folders.
        out: folder of the sets.
        num_answers: largest size of the vocabulary, which holds the most frequent answers.
        min_answer_count: number of questions that an answer in it must have.
        answers_of: splits whose questions count.
    """
    splits = _splits(source)
    refuse_prepared(out / split for split in splits)
    files = published.list_files(source, *(f"{split}2014" for split in splits))
    notes = {
        split: published.read_records(
            source / _FILES[split][1], "annotations", object_hook=_answer_text
        )[0]
        for split in splits
    }
    counted = [notes[s] for s in splits if s in answers_of.split("+")]
    vocabulary = _vocabulary(counted, num_answers, min_answer_count)
    about = Manifest(
        name="vqav2",
        kind="image-question",
        class_names=tuple(vocabulary),
        licence="questions and answers CC-BY-4.0; pictures: terms of Flickr",
        origin=f"{source.uri}, VQAv2 (arXiv:1612.00837)",
        files_at=source.uri,
    )
    rows = {split: _rows(source, split, notes[split], vocabulary) for split in splits}
    return published.write(out, about, rows, files)


def _splits(source: Location) -> list[str]:
    """Return the splits that are there; train is required, since its answers are the classes."""
    there = source.names()
    splits = ["train", "val"] if set(_FILES["val"]) & set(there) else ["train"]
    if missing := [file for split in splits for file in _FILES[split] if file not in there]:
        raise published.wrong_layout(source, *missing)
    return splits


def _answer_text(record: dict[str, Any]) -> Any:
    """Return only the text of a person's answer: millions share a few thousand words."""
    if "answer" not in record:
        return record
    text = record["answer"]
    return sys.intern(text) if isinstance(text, str) else None


def _vocabulary(parts: Sequence[Records], size: int, min_count: int) -> dict[str, int]:
    """Return the class id of each frequent answer, the most frequent first."""
    answers = (published.clean(n.get("multiple_choice_answer")) for notes in parts for n in notes)
    counts = Counter(answer for answer in answers if answer)
    frequent = sorted((-n, answer) for answer, n in counts.items() if n >= min_count)[:size]
    if not frequent:
        raise SampleError(f"no answer is that of min_answer_count={min_count} questions or more")
    return {answer: number for number, (_, answer) in enumerate(frequent)}


def _rows(
    source: Location, split: str, annotations: Records, vocabulary: Mapping[str, int]
) -> Iterator[Row]:
    (questions,) = published.read_records(source / _FILES[split][0], "questions")
    note_of = {str(note.get("question_id")): note for note in annotations}
    for entry in questions:
        key = str(entry.get("question_id"))
        note = note_of.pop(key, None)
        if note is None:
            yield RejectedRow(key, "missing_annotation")
        else:
            yield _row(key, entry, note, split, vocabulary)
    for key in note_of:
        yield RejectedRow(key, "missing_question")


def _row(
    key: str,
    entry: dict[str, Any],
    note: dict[str, Any],
    split: str,
    vocabulary: Mapping[str, int],
) -> Row:
    question, image_id = published.clean(entry.get("question")), entry.get("image_id")
    answers = [answer for answer in map(published.clean, note.get("answers") or ()) if answer]
    if not question:
        return RejectedRow(key, "missing_question")
    if not isinstance(image_id, int):
        return RejectedRow(key, "missing_image", f"image_id {image_id}")
    if not answers:
        return RejectedRow(key, "missing_answer")
    class_id = vocabulary.get(published.clean(note.get("multiple_choice_answer")))
    at = ImageReference(f"{split}2014/COCO_{split}2014_{image_id:012d}.jpg")
    return RawSample(key, None, answers, class_id, question=question, image_at=at)
