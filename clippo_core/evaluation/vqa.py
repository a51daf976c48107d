"""Visual question answering: the question is drawn on the picture, the answer is a class."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

from clippo_core.config import ImageConfig
from clippo_core.errors import ConfigError
from clippo_core.images import fit_image
from clippo_core.rendering import TextRenderer
from clippo_core.rendering.unifont import GLYPH_PX

Picture = UInt8[np.ndarray, "_ _ 3"] | Image.Image

#: The share of the canvas that a question takes at most.
MAX_QUESTION_SHARE = 0.5


def draw_questions(
    pictures: Sequence[Picture | None],
    questions: Sequence[str],
    renderer: TextRenderer,
    image: ImageConfig,
) -> UInt8[np.ndarray, "question height_px width_px 3"]:
    """Return each picture with its question at the top, as CLIPPO reads both at once.

    The paper renders "the question at the top" of the picture and prints no more of it. Here the
    question's text rows come first and the picture, squeezed, fills what is below, so that nothing
    of it is hidden.

    Args:
        pictures: pictures of any size; None is a blank canvas, for what the question alone tells.
        questions: question of each picture; an empty one takes no room. Rows past
            `MAX_QUESTION_SHARE` of the canvas are left out; `share_cut` returns how many questions
            that cuts.
        renderer: draws text as the model was trained with it, and names the canvas.
        image: settings by which pictures are resized.

    Raises:
        ConfigError: if there are not as many questions as pictures.
    """
    if len(pictures) != len(questions):
        raise ConfigError(f"{len(questions)} questions for {len(pictures)} pictures")
    rasters, size = renderer.render_batch(questions), renderer.config.image_size_px
    heights = np.minimum(rasters.occupied_rows, _max_rows(renderer)) * GLYPH_PX
    texts = rasters.to_pixels()
    canvases = np.full((len(pictures), size, size, 3), renderer.config.background, np.uint8)
    for canvas, picture, text, height in zip(canvases, pictures, texts, heights, strict=True):
        if picture is not None:
            fitted = Image.fromarray(fit_image(picture, image, image_size_px=size))
            below = (size, size - int(height))
            canvas[height:] = np.asarray(fitted.resize(below, Image.Resampling.BILINEAR))
        canvas[:height] = text[:height, :, None]
    return canvases


def share_cut(questions: Sequence[str], renderer: TextRenderer) -> float:
    """Return the share of questions that need more rows than they get.

    Above a percent, use a larger canvas (`load_checkpoint(..., image_size_px=)`).
    """
    return float((renderer.render_batch(questions).occupied_rows > _max_rows(renderer)).mean())


def _max_rows(renderer: TextRenderer) -> int:
    return max(int(renderer.config.image_size_px * MAX_QUESTION_SHARE) // GLYPH_PX, 1)


def vqa_accuracies(
    predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> Float64[np.ndarray, " question"]:
    """Compute the VQA accuracy of each question: `min(people who said so / 3, 1)`.

    It is averaged over all ways of leaving one of the people out, and spelling is normalised where
    people disagree, as in the official code (visualqa.org/evaluation.html; big_vision's
    `paligemma/transfers/vqav2.py` normalises likewise).

    Args:
        predictions: an answer to each question.
        answers: people's answers, ten for each question of VQAv2.

    Raises:
        ConfigError: if a question has fewer than four answers, from which three cannot agree.
    """
    few = [number for number, said in enumerate(answers) if len(said) < 4]
    if len(predictions) != len(answers) or few:
        raise ConfigError(
            f"{len(predictions)} predictions for {len(answers)} questions, of which {len(few)} "
            "have fewer than four people's answers; for single answers use exact_matches"
        )
    return np.array([_agreement(*pair) for pair in zip(predictions, answers, strict=True)])


def _agreement(prediction: str, said: Sequence[str]) -> float:
    if len(set(said)) > 1:
        prediction, said = normalize_answer(prediction), [normalize_answer(a) for a in said]
    num, agreeing = len(said), sum(answer == prediction for answer in said)
    # In `agreeing` of the `num` ways, the person who is left out gave a matching answer.
    with_one_less, with_all = (min(max(n, 0) / 3, 1.0) for n in (agreeing - 1, agreeing))
    return (agreeing * with_one_less + (num - agreeing) * with_all) / num


def exact_matches(
    predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> Bool[np.ndarray, " question"]:
    """Return for each prediction if it is the answer that most people gave."""
    most = [Counter(map(normalize_answer, said)).most_common(1)[0][0] for said in answers]
    found = [normalize_answer(p) == a for p, a in zip(predictions, most, strict=True)]
    return np.array(found, bool)


def most_frequent_answers(
    train_questions: Sequence[str], train_answers: Sequence[str], questions: Sequence[str]
) -> list[str]:
    """Return each question's most frequent training answer: a floor that sees no picture.

    A question that training does not have gets the most frequent answer of all.
    """
    per_question: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(train_questions, train_answers, strict=True):
        per_question[question][answer] += 1
    overall = Counter(train_answers)
    known = {question: counts.most_common(1)[0][0] for question, counts in per_question.items()}
    (fallback, _), *_ = overall.most_common(1)
    return [known.get(question, fallback) for question in questions]


def answer_targets(
    answers: Sequence[Sequence[str]], vocabulary: Sequence[str]
) -> Float64[np.ndarray, "question answer"]:
    """Return training targets: the VQA accuracy that each answer of the vocabulary would get.

    For single answers the target is 1 at the answer. Answers outside the vocabulary are left out.
    """
    number_of = {answer: number for number, answer in enumerate(vocabulary)}
    targets = np.zeros((len(answers), len(vocabulary)))
    for row, said in zip(targets, answers, strict=True):
        for answer in set(said) & set(number_of):
            row[number_of[answer]] = _agreement(answer, said) if len(said) > 3 else 1.0
    return targets


def normalize_answer(text: str) -> str:
    """Return an answer in the spelling that VQA compares.

    This is lower case, without articles and most punctuation, with digits for number words, and
    with apostrophes in their place. The official code's oddities are kept: a punctuation mark
    vanishes if it stands beside a space or the answer has a comma between digits, and becomes a
    space otherwise.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_digit_comma = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        is_loose = has_digit_comma or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_loose else " ")
    # Only full stops before a digit stay, as in the official code.
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in ("a", "an", "the"))


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBERS = {"none": "0", "ten": "10"} | {
    word: str(number) for number, word in enumerate(_NUMBER_WORDS)
}
#: Words that the official code restores when one of their apostrophes is missing.
_WITH_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a list of words
_CONTRACTIONS = {
    word[: match.start()] + word[match.end() :]: word
    for word in _WITH_APOSTROPHES
    for match in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
