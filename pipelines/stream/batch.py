"""The work of a render worker: it turns samples of the plan into one rank's batch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from clippo_core.config import ImageConfig, RenderConfig
from clippo_core.errors import ConfigError, Rejected, RejectReason, RenderError, SampleError
from clippo_core.evaluation.vqa import draw_questions
from clippo_core.images import decode_image
from clippo_core.rendering import TextRasters, TextRenderer
from clippo_core.rendering.unifont import parse_font
from clippo_core.sample_plan import PlannedSamples, SamplePlan
from clippo_core.unicode import is_unicode, readable
from clippo_core.vocabulary import PreparedTexts, Vocabulary
from pipelines.datasets.labels import Labels, LabelSpec, digest_of_labels, target_of, text_of
from pipelines.datasets.manifest import RawSample, SampleKind
from pipelines.datasets.sources import Source, open_source
from pipelines.runtime.storage import Location


@dataclass(frozen=True)
class SourceReference:
    """A data set by place and content, as it travels to workers."""

    uri: str
    digest: str
    kind: SampleKind = "image-text"


@dataclass(frozen=True)
class VocabularyReference:
    """A baseline's vocabulary, as it travels to workers, and how long its texts are."""

    uri: str
    sha256: str
    max_tokens: int


@dataclass(frozen=True)
class StreamSpec:
    """All that decides which batch a step has; kept small, since each render task is sent one.

    Attributes:
        plan: the rule by which samples form a batch.
        sources: the data sets, in the plan's order.
        render: the settings by which captions are drawn, with the font's hash.
        image: the settings by which pictures are resized.
        font_uri: the font's file where it is not the bundled one.
        vocabulary: the one by which texts become tokens; None: texts are drawn.
        labels: the labels of fine-tuning; None: the samples are pairs.
    """

    plan: SamplePlan
    sources: tuple[SourceReference, ...]
    render: RenderConfig
    image: ImageConfig
    font_uri: str | None = None
    vocabulary: VocabularyReference | None = None
    labels: LabelSpec | None = None


def drawing(spec: StreamSpec) -> StreamSpec:
    """Return this stream with texts that are drawn, even where the model takes tokens."""
    return dataclasses.replace(spec, vocabulary=None)


def as_drawn(texts: PreparedTexts) -> TextRasters:
    """Narrow the texts of a stream that draws them to their type."""
    assert isinstance(texts, TextRasters)
    return texts


@dataclass(frozen=True)
class RejectedRow:
    """A sample that could not be used, with its place in the data and in the batch."""

    key: str
    source: str
    reason: RejectReason
    detail: str
    step: int
    row: int


@dataclass(frozen=True)
class Effort:
    """The time that a batch took to prepare, with place and date; a run's stream figures add it up.

    Attributes:
        seconds: time on the clock of each stage: read, decode, render.
        cpu_seconds: CPU time of each stage; less than on the clock where the process waited.
        node: the cluster's node that did the work.
        finished_at: Unix time at which the block was ready; 0 outside of a stream.
    """

    seconds: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    node: str = ""
    finished_at: float = 0.0


class StageClock:
    """Adds up what each stage takes."""

    def __init__(self) -> None:
        """Begin with no time counted."""
        self._seconds: Counter[str] = Counter()
        self._cpu_seconds: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block under `with` takes to a stage."""
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        self._seconds[name] += time.perf_counter() - started  # pyright: ignore[reportArgumentType]
        self._cpu_seconds[name] += time.process_time() - cpu_started  # pyright: ignore

    def effort(self) -> Effort:
        """Return the time that was counted so far."""
        return Effort(dict(self._seconds), dict(self._cpu_seconds))


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """One rank's batch, ready for the device: pairs of a picture and a text, then of two texts.

    In fine-tuning it holds labelled pictures (with questions drawn on them) or labelled texts, and
    the other side is empty.

    Attributes:
        step: the step that the batch is for.
        keys: the key of each sample.
        images: left sides of the first pairs, on the canvas.
        left_texts: left sides of the other pairs, rendered or as tokens.
        texts: right sides of all pairs, rendered or as tokens.
        groups: number of each pair's group, the same for pairs that mean the same.
        rejected: samples that were replaced.
        effort: the time that the batch took to prepare.
        targets: one row for each labelled sample; None: the samples are pairs.
        first_image: number of pictures of the global batch in the parts of the ranks before.
    """

    step: int
    keys: list[str]
    images: UInt8[np.ndarray, "image height_px width_px 3"]
    left_texts: PreparedTexts
    texts: PreparedTexts
    groups: Int64[np.ndarray, " pair"]
    rejected: list[RejectedRow]
    effort: Effort
    targets: Float32[np.ndarray, "sample output"] | None = None
    first_image: int = 0


def prepare_batch(spec: StreamSpec, planned: PlannedSamples, *, step: int) -> PreparedBatch:
    """Read, decode and render samples; each rejected one is replaced out of its run's reserve.

    A text without ink is rejected even where texts are not drawn, so that all models see the same
    pairs.

    Raises:
        ConfigError: if the vocabulary is not the one that the run began with.
        SampleError: if a whole reserve was rejected, or a data set changed since the run began.
    """
    clock = StageClock()
    renderer = open_renderer(spec.render, spec.font_uri)
    chosen = _choose_samples(spec, renderer, planned, clock, step=step)
    # Stable: pictures first, otherwise in the plan's order.
    usable = sorted(chosen.samples, key=lambda sample: isinstance(sample.left, str))
    with clock.stage("render"):
        lefts = [sample.left for sample in usable if isinstance(sample.left, str)]
        left_texts = _prepare_texts(spec, renderer, lefts)
        texts = _prepare_texts(spec, renderer, [sample.caption for sample in usable])
    size = spec.render.image_size_px
    images = np.empty((len(usable) - len(left_texts), size, size, 3), np.uint8)
    for slot in range(len(images)):
        images[slot] = usable[slot].left
    keys = [sample.key for sample in usable]
    found = [sample.target for sample in usable if sample.target is not None]
    targets = np.stack(found) if found else None
    return PreparedBatch(
        step=step,
        keys=keys,
        images=images,
        left_texts=left_texts,
        texts=texts,
        groups=_groups([sample.class_name for sample in usable], texts),
        rejected=chosen.rejected,
        effort=clock.effort(),
        targets=targets,
    )


def _groups(class_names: Sequence[str | None], texts: PreparedTexts) -> Int64[np.ndarray, " pair"]:
    """Return a number for each pair: its class's, else that of its text as the model reads it.

    Classes of one name are one class, whatever set they are of.
    """
    named = [
        texts.content(slot) if name is None else f"class {name.casefold()}".encode()
        for slot, name in enumerate(class_names)
    ]
    digests = [hashlib.blake2b(name, digest_size=8).digest() for name in named]
    return np.frombuffer(b"".join(digests), np.int64)


def _prepare_texts(spec: StreamSpec, renderer: TextRenderer, texts: Sequence[str]) -> PreparedTexts:
    if spec.vocabulary is None:
        return renderer.render_batch(texts)
    return open_vocabulary(spec.vocabulary).encode(texts, max_tokens=spec.vocabulary.max_tokens)


class ChosenSamples(NamedTuple):
    """A usable sample for each planned one, and the samples that were rejected."""

    samples: list[UsableSample]
    rejected: list[RejectedRow]


def _choose_samples(
    spec: StreamSpec,
    renderer: TextRenderer,
    planned: PlannedSamples,
    clock: StageClock,
    *,
    step: int,
) -> ChosenSamples:
    """Choose a usable sample for each planned one; each round reads its replacements together."""
    usable: dict[int, UsableSample] = {}
    rejected: list[RejectedRow] = []
    waiting, visits = np.arange(len(planned)), planned
    for attempt in range(1, spec.plan.run_length + 2):
        with clock.stage("read"):
            samples = read_planned(spec, visits)
        drawn = [
            Visit(sample, spec.sources[source].kind, draw, source)
            for sample, source, draw in zip(
                samples, visits.source.tolist(), visits.draw.tolist(), strict=True
            )
        ]
        with clock.stage("decode"):
            outcomes = prepare_samples(spec, renderer, drawn)
        refused: list[int] = []
        for slot, outcome in enumerate(outcomes):
            if isinstance(outcome, UsableSample):
                usable[int(waiting[slot])] = outcome
                continue
            refused.append(slot)
            name = _open_reference(spec.sources[visits.source[slot]]).name
            key, row = samples[slot].key, int(visits.row[slot])
            rejected.append(RejectedRow(key, name, outcome.reason, outcome.detail, step, row))
        if not refused:
            return ChosenSamples([usable[slot] for slot in range(len(planned))], rejected)
        waiting = waiting[refused]
        visits = spec.plan.reserve(planned[waiting], attempt)
    last = rejected[-1]
    raise SampleError(
        f"{last.source}: {spec.plan.run_length} samples in a row cannot be used, the last one "
        f"({last.key}) for {last.reason}: {last.detail}. Look at the data with\n"
        "  python -m pipelines inspect --help"
    )


class UsableSample(NamedTuple):
    """A pair: a picture on the canvas or a text, and the text that goes with it.

    A labelled sample has one of the two, beside its target; the other one is "".
    """

    key: str
    left: UInt8[np.ndarray, "height_px width_px 3"] | str
    caption: str
    target: Float32[np.ndarray, " output"] | None = None
    class_name: str | None = None


class Visit(NamedTuple):
    """A stored sample of a source, with the random number of this visit."""

    sample: RawSample
    kind: SampleKind
    draw: int
    source: int = 0
    """Number of the source in `StreamSpec.sources`."""


def prepare_samples(
    spec: StreamSpec, renderer: TextRenderer, visits: Sequence[Visit]
) -> list[UsableSample | Rejected]:
    """Draw a pair out of each sample, and decode its picture.

    Args:
        spec: the stream, which says how to decode.
        renderer: the renderer that tells whether a text has anything to see.
        visits: the stored samples, each with the random number of its visit.
    """
    if spec.labels is not None:
        return _prepare_labelled(spec, spec.labels, renderer, visits)
    drawn = [draw_pair(visit) for visit in visits]
    texts = list({text: None for pair in drawn if not isinstance(pair, Rejected) for text in pair})
    is_inked = dict(zip(texts, renderer.render_batch(texts).occupied_rows > 0, strict=True))
    return [
        pair if isinstance(pair, Rejected) else _prepare_pair(spec, visit, pair, is_inked)
        for visit, pair in zip(visits, drawn, strict=True)
    ]


def _prepare_labelled(
    spec: StreamSpec, labels: LabelSpec, renderer: TextRenderer, visits: Sequence[Visit]
) -> list[UsableSample | Rejected]:
    """Return labelled texts, or pictures with questions drawn on them, with their targets."""
    read = [_read_labelled(spec, labels, visit) for visit in visits]
    texts = ["" if isinstance(found, Rejected) else found.caption for found in read]
    inked_rows = renderer.render_batch(texts).occupied_rows
    outcomes = [
        Rejected("blank_caption", repr(found.caption[:80]))
        if isinstance(found, UsableSample) and not rows
        else found
        for found, rows in zip(read, inked_rows, strict=True)
    ]
    if labels.task != "vqa":
        return outcomes
    usable = [slot for slot, found in enumerate(outcomes) if isinstance(found, UsableSample)]
    kept = [found for found in outcomes if isinstance(found, UsableSample)]
    pictures = [found.left for found in kept if not isinstance(found.left, str)]
    canvases = draw_questions(pictures, [found.caption for found in kept], renderer, spec.image)
    for slot, found, canvas in zip(usable, kept, canvases, strict=True):
        outcomes[slot] = found._replace(left=canvas, caption="")
    return outcomes


def _read_labelled(spec: StreamSpec, labels: LabelSpec, visit: Visit) -> UsableSample | Rejected:
    """Return a stored sample with its text, or with its question and its decoded picture."""
    sample = visit.sample
    target = target_of(sample, labels, _labels_of(spec.sources, visit.source, labels.digest))
    if isinstance(target, Rejected):
        return target
    text = (sample.question or "") if labels.task == "vqa" else text_of(sample)
    if isinstance(text, Rejected):
        return text
    if not is_unicode(text):
        return Rejected("invalid_unicode", readable(text[:80]))
    if labels.task != "vqa":
        return UsableSample(sample.key, "", text, target)
    pixels = decode_image(sample.image, spec.image, image_size_px=spec.render.image_size_px)
    if isinstance(pixels, Rejected):
        return pixels
    return UsableSample(sample.key, pixels, text, target)


@functools.lru_cache(maxsize=64)
def _labels_of(sources: tuple[SourceReference, ...], number: int, digest: str) -> Labels:
    """Return how a source numbers the labels of the run, which are the first source's."""
    names = _open_reference(sources[0]).manifest.class_names if digest else ()
    if digest_of_labels(names) != digest:
        raise SampleError(
            f"{sources[0].uri} has other labels than when the run began; put the old data back, "
            "or start a new run"
        )
    return Labels(names, _open_reference(sources[number]).manifest.class_names)


def draw_pair(visit: Visit) -> tuple[str, ...] | Rejected:
    """Draw the texts that take part: one beside a picture, else two."""
    found = [text for text in visit.sample.captions or () if text is not None]
    # Such as the empty title of a photo that has a description.
    texts = [text for text in found if text.strip()] or found[:1]
    wanted = 1 if visit.kind == "image-text" else 2
    if len(texts) < wanted:
        return Rejected("missing_caption", f"{len(texts)} texts, expected {wanted} or more")
    drawn = tuple(texts[n] for n in draw_texts(visit.kind, len(texts), visit.draw)[:wanted])
    if wrong := [text for text in drawn if not is_unicode(text)]:
        return Rejected("invalid_unicode", readable(wrong[0][:80]))
    return drawn


def _prepare_pair(
    spec: StreamSpec, visit: Visit, texts: tuple[str, ...], is_inked: Mapping[str, bool]
) -> UsableSample | Rejected:
    blank = [text for text in texts if not is_inked[text]]
    if blank:
        return Rejected("blank_caption", repr(blank[0][:80]))
    if visit.kind != "image-text":
        return UsableSample(visit.sample.key, texts[0], texts[1])
    size = spec.render.image_size_px
    pixels = decode_image(visit.sample.image, spec.image, image_size_px=size)
    if isinstance(pixels, Rejected):
        return pixels
    return UsableSample(visit.sample.key, pixels, texts[0], class_name=_class_name(spec, visit))


def _class_name(spec: StreamSpec, visit: Visit) -> str | None:
    names, number = (
        _open_reference(spec.sources[visit.source]).manifest.class_names,
        visit.sample.class_id,
    )
    return None if number is None or not 0 <= number < len(names) else names[number]


def draw_texts(kind: SampleKind, count: int, draw: int) -> tuple[int, int]:
    """Return the numbers of the texts that form the pair; one number twice where one will do.

    Args:
        kind: kind of the sample.
        count: how many texts it has.
        draw: the visit's random number.
    """
    if kind == "next-sentence":
        first = draw % (count - 1)
        return first, first + 1
    if kind == "parallel-texts":
        # Every ordered pair of two different ones is as likely.
        second, first = divmod(draw % (count * (count - 1)), count)
        return first, (first + 1 + second) % count
    return draw % count, draw % count


def read_planned(spec: StreamSpec, planned: PlannedSamples) -> list[RawSample]:
    """Read the stored rows of planned samples, in their order.

    Raises:
        SampleError: if a data set is missing, damaged, or changed since the run began.
    """
    samples: dict[int, RawSample] = {}
    for number in np.unique(planned.source):
        slots = np.flatnonzero(planned.source == number)
        rows = planned.row[slots]
        read = _open_reference(spec.sources[number]).read(rows)
        samples |= dict(zip(slots.tolist(), read, strict=True))
    return [samples[slot] for slot in range(len(planned))]


@functools.lru_cache(maxsize=4)
def open_renderer(config: RenderConfig, font_uri: str | None) -> TextRenderer:
    """Return a renderer, made once per process, whose font may be in a bucket.

    Raises:
        RenderError: if the font is missing, damaged, or not the one that the config names.
    """
    if font_uri is None:
        return TextRenderer(config)
    try:
        font = parse_font(Location.of(font_uri).read_bytes(), name=font_uri)
    except FileNotFoundError:
        raise RenderError(f"the font {font_uri} does not exist") from None
    return TextRenderer(config, font=font)


@functools.lru_cache(maxsize=4)
def open_vocabulary(reference: VocabularyReference) -> Vocabulary:
    """Return a vocabulary, read once per process.

    Raises:
        ConfigError: if it is missing, or not the one that the run began with.
    """
    try:
        vocabulary = Vocabulary(Location.of(reference.uri).read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"the vocabulary {reference.uri} does not exist") from None
    if vocabulary.sha256 != reference.sha256:
        raise ConfigError(
            f"{reference.uri} is not the vocabulary that the run began with; put that back, or "
            "start a new run"
        )
    return vocabulary


@functools.lru_cache(maxsize=64)
def _open_reference(reference: SourceReference) -> Source:
    source = open_source(reference.uri)
    if source.manifest.digest != reference.digest:
        raise SampleError(
            f"{reference.uri} changed since the run began (digest {reference.digest} then, "
            f"{source.manifest.digest} now); put the old data back, or start a new run"
        )
    return source
