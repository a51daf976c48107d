"""The claims of the paper that a small machine can test, and the runs that test them.

All arms of a claim see as many samples, in as many steps, unless it says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.config.fine_tuning import base_config, completed, model_of
from pipelines.config.presets import demo, icons_small
from pipelines.config.settings import RunConfig
from pipelines.runtime.storage import Location
from pipelines.studies.verdicts import Comparison

_NAMES = "multilingual_zero_shot:fashion_mnist/test"
_ICONS = "multilingual_zero_shot:icons/small/heldout"
_PROBE = "text_probe:topics/r8/test"
_GAP = "modality_gap:fashion_mnist/test"
_QUESTIONS = "vqa:easy_vqa/test"
#: Names of the results of these evaluations.
_OF_NAMES = "multilingual_zero_shot/fashion_mnist-test"
_OF_ICONS = "multilingual_zero_shot/icons-small-heldout"
_OF_PROBE = "text_probe/r8-test"
_OF_GAP = "modality_gap/fashion_mnist-test"
_OF_QUESTIONS = "vqa/easy_vqa-test"
_OF_LENGTHS = "sequence_length/udhr-articles"
#: Steps of the runs on names and on icons; a quick study makes a few of them.
#: Room and vocabulary of the models that read tokens: a canvas of the others has 16 patches, too.
_TOKENS = {"max_tokens": 16, "vocabulary_size": 4000}
_STEPS, _QUICK_STEPS = {"names": 400, "icons": 1000}, {"names": 150, "icons": 300}


@dataclass(frozen=True)
class Arm:
    """A way to train that claims compare with others.

    Attributes:
        name: name of its runs, before the seed.
        config: its settings, of a full study.
        quick_steps: its steps in a quick study.
        after: the arm from whose last checkpoint, of the same seed, it starts; None: fresh weights.
        complete: completes the settings, given that checkpoint.
        most_seeds: how many of its runs a study makes at most; None: as many as are asked for.
    """

    name: str
    config: RunConfig
    quick_steps: int
    after: str | None = None
    complete: Callable[[RunConfig, str], RunConfig] | None = None
    most_seeds: int | None = None

    def num_seeds(self, asked: int) -> int:
        """Return how many runs it has in a study of so many seeds."""
        return asked if self.most_seeds is None else min(asked, self.most_seeds)


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        name: name in commands.
        says: the claim, as a sentence.
        comparisons: what must hold for it to be shown.
        shown: further metrics for its table, by the names that a person reads.
    """

    name: str
    says: str
    comparisons: tuple[Comparison, ...]
    shown: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """Names of the arms that it compares, in their order."""
        named = [arm for c in self.comparisons for arm in (c.ours, c.theirs)]
        return list(dict.fromkeys(arm for arm in named if isinstance(arm, str)))


def _changed(config: RunConfig, **groups: dict[str, Any]) -> RunConfig:
    """Return a config with fields of its groups replaced."""
    changes = {
        name: dataclasses.replace(getattr(config, name), **fields)
        for name, fields in groups.items()
    }
    return dataclasses.replace(config, **changes)


def _on_names(
    name: str, *tasks: str, changes: dict[str, dict[str, Any]] | None = None, steps: float = 1.0
) -> Arm:
    """Return an arm on Fashion-MNIST and its class names in 108 languages."""
    length = round(steps * _STEPS["names"])
    config = _changed(
        _changed(demo(), **(changes or {})),
        evaluation={"tasks": tuple(dict.fromkeys((_NAMES, _GAP, *tasks)))},
        tracking={"registered_model": None, "pictures": False},
    )
    config = _changed(config, train={"steps": length, "checkpoint_every": length})
    return Arm(name, config, round(steps * _QUICK_STEPS["names"]))


def _on_icons(name: str, text_input: str) -> Arm:
    length = _STEPS["icons"]
    config = _changed(
        icons_small(),
        model={"text_input": text_input, **(_TOKENS if text_input != "pixels" else {})},
        train={"steps": length, "checkpoint_every": length},
        evaluation={"tasks": (_ICONS, "multilingual_zero_shot:icons/small/novel")},
        tracking={"registered_model": None, "pictures": False},
    )
    return Arm(name, config, _QUICK_STEPS["icons"])


def _with_texts(share: float) -> dict[str, dict[str, Any]]:
    texts = ("topics/r8/windows", "topics/newsgroups/windows")
    data = demo().data
    return {
        "data": {
            "sources": (*data.sources, *texts),
            "weights": (0.55, 0.45, 0.3, 0.7),
            "text_share": share,
        }
    }


def _answering(config: RunConfig, checkpoint: str) -> RunConfig:
    """Complete a fine-tuning on questions by the checkpoint to start from."""
    place = Location.of(checkpoint)
    base = base_config("vqa", model_of(place))
    config = dataclasses.replace(config, model=base.model, optim=base.optim)
    return completed(config, "vqa", place, image_size_px=96)


def _arms() -> dict[str, Arm]:
    shapes = _changed(
        demo(),
        data={"sources": ("easy_vqa/captions",), "weights": ()},
        model={"render": dataclasses.replace(demo().model.render, image_size_px=96)},
        train={"steps": 1000, "checkpoint_every": 1000},
        evaluation={"tasks": ()},
        tracking={"registered_model": None, "pictures": False},
    )
    questions = _changed(
        demo(),
        data={"sources": ("easy_vqa/train",), "weights": ()},
        train={
            "steps": 12_000,
            "global_batch_size": 32,
            "checkpoint_every": 12_000,
            "positives": "pair",
        },
        finetune={"task": "vqa"},
        evaluation={"tasks": (_QUESTIONS,)},
        tracking={"registered_model": None, "pictures": False},
    )
    arms = (
        _on_names("clippo", _PROBE, "sequence_length:udhr/articles"),
        _on_names("clip", changes={"model": {"text_input": "tokens_two_towers", **_TOKENS}}),
        _on_names("1t-clip", changes={"model": {"text_input": "tokens_one_tower", **_TOKENS}}),
        _on_names("text-25", _PROBE, changes=_with_texts(0.25)),
        _on_names("text-50", _PROBE, changes=_with_texts(0.5)),
        _on_names("all-patches", changes={"model": {"text_patches": "all"}}),
        _on_names("positives-pair", changes={"train": {"positives": "pair"}}),
        # Each of its steps takes so much less time (tests/benchmarks/step.py).
        _on_names("flip-50", changes={"train": {"image_patch_drop": 0.5}}, steps=1.6),
        _on_icons("icons-clippo", "pixels"),
        _on_icons("icons-clip", "tokens_two_towers"),
        _on_icons("icons-1t-clip", "tokens_one_tower"),
        Arm("shapes", shapes, quick_steps=150, most_seeds=1),
        # On two cores it takes half an hour or longer.
        Arm(
            "answers",
            questions,
            quick_steps=300,
            after="shapes",
            complete=_answering,
            most_seeds=1,
        ),
    )
    return {arm.name: arm for arm in arms}


ARMS = _arms()


def _as_good_as(theirs: str, what: str) -> tuple[Comparison, ...]:
    """Return that CLIPPO is as good as a baseline, to two points, in three ways."""
    return (
        Comparison(f"{what}: trained languages", f"{_OF_NAMES}/accuracy", "clippo", theirs, 0.02),
        Comparison(
            f"{what}: held-out languages", f"{_OF_NAMES}/held_out_accuracy", "clippo", theirs, 0.02
        ),
        Comparison(
            f"{what}: held-out icon sets",
            f"{_OF_ICONS}/accuracy",
            "icons-clippo",
            f"icons-{theirs}",
            0.02,
        ),
    )


CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "clip",
            "With half the parameters, CLIPPO classifies as well as CLIP*, to two points.",
            _as_good_as("clip", "against CLIP*"),
        ),
        Claim(
            "1t-clip",
            "CLIPPO classifies as well as 1T-CLIP, to two points.",
            _as_good_as("1t-clip", "against 1T-CLIP"),
        ),
        Claim(
            "text-pairs",
            "Pairs of texts teach the model to tell texts apart.",
            (
                Comparison("linear probe on R8, 25 %", f"{_OF_PROBE}/probe_accuracy", "text-25",
                           "clippo"),
                Comparison("linear probe on R8, 50 %", f"{_OF_PROBE}/probe_accuracy", "text-50",
                           "clippo"),
                Comparison("nearest neighbour on R8, 50 %", f"{_OF_PROBE}/neighbour_accuracy",
                           "text-50", "clippo"),
            ),
            {"zero-shot, trained languages (the price)": f"{_OF_NAMES}/accuracy"},
        ),
        Claim(
            "spread",
            "Accuracy spreads less over languages with pixels than with tokens.",
            tuple(
                Comparison(
                    f"deviation over languages, against {theirs}",
                    f"{_OF_NAMES}/deviation_over_languages", "clippo", theirs, is_less_better=True,
                )
                for theirs in ("clip", "1t-clip")
            ),
            {"least accurate language": f"{_OF_NAMES}/least_accuracy"},
        ),
        Claim(
            "lengths",
            "In most languages a text has fewer patches than tokens, of a vocabulary made for "
            "these texts and of XLM-RoBERTa's 250,002 pieces.",
            tuple(
                Comparison(f"share of languages, against {about}",
                           f"{_OF_LENGTHS}/share_shorter_than_{tokenizer}", "clippo", 0.5)
                for tokenizer, about in (("sentencepiece", "an own vocabulary"),
                                         ("xlm_roberta", "XLM-RoBERTa's"))
            ),
            {
                "patches per token of an own vocabulary":
                    f"{_OF_LENGTHS}/patches_per_sentencepiece_token",
                "patches per token of XLM-RoBERTa": f"{_OF_LENGTHS}/patches_per_xlm_roberta_token",
            },
        ),
        Claim(
            "answers",
            "CLIPPO answers questions that are drawn on pictures: easy-VQA, 95 % or more.",
            (Comparison("accuracy on the test questions", f"{_OF_QUESTIONS}/accuracy", "answers",
                        0.95),),
        ),
        Claim(
            "gap",
            "Pairs of texts bring texts and pictures closer together: the modality gap shrinks.",
            tuple(
                Comparison(f"gap, {share} % pairs of texts", f"{_OF_GAP}/gap", f"text-{share}",
                           "clippo", is_less_better=True)
                for share in (25, 50)
            ),
        ),
        Claim(
            "occupied",
            "To leave out patches without ink costs nothing, to a point.",
            (Comparison("trained languages", f"{_OF_NAMES}/accuracy", "clippo", "all-patches",
                        0.01),),
        ),
        Claim(
            "typos",
            "With a typo in every name, pixels are read better than tokens.",
            tuple(
                Comparison(f"accuracy with typos, against {theirs}", f"{_OF_NAMES}/typo_accuracy",
                           "clippo", theirs)
                for theirs in ("clip", "1t-clip")
            ),
            {"accuracy without": f"{_OF_NAMES}/accuracy"},
        ),
        Claim(
            "positives",
            "Where classes repeat, equal pairs as positives are better than as negatives.",
            (Comparison("trained languages", f"{_OF_NAMES}/accuracy", "clippo", "positives-pair"),),
        ),
        Claim(
            "flip",
            "With half of the patches dropped, 1.6 times the steps teach as much, to a point.",
            (Comparison("trained languages", f"{_OF_NAMES}/accuracy", "flip-50", "clippo", 0.01),),
        ),
    )
}  # fmt: skip
