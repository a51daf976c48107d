"""Published numbers of the paper and its authors' notebook, where a benchmark here is theirs.

CLIPPO, arXiv:2212.08045: ViT-B/16 trained on YFCC-100M, of which the authors published the weights;
CIFAR-100 and SST-2 from the notebook beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIPPO = "CLIPPO"
_I21K, _25, _50, _75 = "+ ImageNet-21k init", "+ 25 % C4", "+ 50 % C4", "+ 75 % C4"


@dataclass(frozen=True)
class Published:
    """One row of the paper.

    Attributes:
        benchmark: this project's name of the result on the whole data set.
        metric: this project's name of the metric.
        how: conditions under which the numbers are comparable.
        percent: the numbers, by model.
    """

    benchmark: str
    metric: str
    how: str
    percent: dict[str, float]

    @property
    def first(self) -> tuple[str, float]:
        """Return the plain CLIPPO, or the first model that has a number, and its number."""
        return next(iter(self.percent.items()))


def _row(*numbers: float) -> dict[str, float]:
    return dict(zip((CLIPPO, _I21K, _25, _50, _75), numbers, strict=True))


PUBLISHED = (
    Published("zero_shot/imagenet-val", "accuracy", "prompts", _row(43.4, 47.4, 44.8, 42.0, 33.4)),
    Published(
        "few_shot/imagenet-val",
        "best_l2_accuracy",
        "10 shots, one regulariser for all",
        _row(38.2, 44.7, 43.8, 41.2, 34.5),
    ),
    Published(
        "retrieval/coco_karpathy-test",
        "image_to_text_recall@1",
        "5 captions for each picture",
        _row(34.7, 36.1, 33.3, 31.4, 26.6),
    ),
    Published(
        "retrieval/coco_karpathy-test",
        "text_to_image_recall@1",
        "5 captions for each picture",
        _row(19.7, 21.3, 19.4, 17.8, 14.6),
    ),
    Published(
        "zero_shot/cifar100-test",
        "accuracy",
        "7 prompts (--templates clip7)",
        _row(45.35, 51.83, 50.92, 48.62, 42.04),
    ),
    Published(
        "text_zero_shot/glue_sst-2-dev",
        "accuracy",
        "5 prompts (--text-templates sentiment5; theirs are not printed)",
        {_25: 67.54, _75: 70.06},
    ),
)


def published(benchmark: str, metric: str) -> Published | None:
    """Return the paper's row for a metric of a benchmark, or None."""
    found = (p for p in PUBLISHED if (p.benchmark, p.metric) == (benchmark, metric))
    return next(found, None)
