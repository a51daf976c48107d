"""Steps on a device that is only pretended, by torch's fake tensors: shapes and devices, no values.

Prints the name of each step that was made. One that mixes devices fails, and so does one that reads
a value back, for which the host would wait. In a process of its own, since torch keeps the device.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration

from clippo_core.config import ClassifierConfig, ClippoConfig, OptimConfig, VitConfig
from clippo_core.modeling import make_model
from clippo_core.modeling.pair_model import PairModel
from clippo_core.optim import adafactor, make_optimizer
from clippo_core.rendering import RenderConfig
from clippo_core.training.fine_tuning import LabelledBatch, fine_tuning_step
from clippo_core.training.patch_dropping import draw_kept_patches
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, StepMemory, StepOptions, train_step
from clippo_core.vocabulary import Vocabulary, train_vocabulary

DEVICE = "pretended"
VIT = VitConfig(patch_size_px=16, width=64, depth=2, num_heads=2, mlp_dim=128, embed_dim=32)
RENDER = RenderConfig(image_size_px=64)
TEXTS = ["a", "two patches and more", "rows of text " * 9, "", "b", "c"]


def config(**settings: object) -> ClippoConfig:
    return ClippoConfig(vit=VIT, render=RENDER, **settings)


def move(model: PairModel) -> None:
    """Give it fake parameters on the device, of the shapes that it has."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, device=DEVICE)
            module._parameters[name] = torch.nn.Parameter(fake, parameter.requires_grad)


def train(
    model: PairModel,
    optim: OptimConfig,
    *,
    left: int = 0,
    drops: bool = False,
    options: StepOptions | None = None,
) -> None:
    state = TrainState(model=model, optimizer=make_optimizer(model, optim))
    kept = None
    if drops:
        places = {"first_image": 0, "num_images": 6, "num_patches": 16}
        kept = torch.from_numpy(draw_kept_patches(0.5, seed=0, step=0, **places)).to(DEVICE)
    batch = PairBatch(
        torch.zeros(6, 64, 64, 3, dtype=torch.uint8),
        model.prepare_texts([*TEXTS, *TEXTS[:left]]),
        model.prepare_texts(TEXTS[:left]) if left else None,
        kept,
    )
    for _ in range(2):
        train_step(state, batch, optim, total_steps=9, options=options)


def fine_tune(model: PairModel, optim: OptimConfig, *, pictures: bool) -> None:
    state = TrainState(model=model, optimizer=make_optimizer(model, optim))
    batch = LabelledBatch(
        torch.zeros(6 * pictures, 64, 64, 3, dtype=torch.uint8),
        model.prepare_texts([] if pictures else TEXTS),
        torch.zeros(6, model.classifier_config.num_outputs),
    )
    for size in (None, 4):
        options = StepOptions(memory=StepMemory(micro_batch_size=size))
        fine_tuning_step(state, batch, optim, total_steps=9, options=options)


def attempt(
    name: str,
    model: PairModel,
    steps: Callable[..., None],
    optim: OptimConfig | None = None,
    **settings: object,
) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        move(model)
        steps(model, optim or OptimConfig(), **settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {p.grad.device.type for p in trained if p.grad is not None} == {DEVICE}
    print(name, flush=True)


def check_pretence() -> None:
    """That what must fail does: else nothing would be shown."""
    with FakeTensorMode():
        there, here = torch.empty(2, device=DEVICE), torch.empty(2)
        with pytest.raises(RuntimeError, match="on the same device"):
            there + here
        with pytest.raises(DataDependentOutputException):
            float(there.sum())


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    # torch asks even where autocast is off.
    torch.get_device_module(DEVICE).get_amp_supported_dtype = lambda: [torch.bfloat16]
    check_pretence()
    # How many steps were made is a tensor on the CPU: to read it is free, and here impossible.
    adafactor.float = lambda _: 1.0
    for which in ("all", "occupied"):
        attempt(which, make_model(config(text_patches=which)), train)
    attempt("adamw", make_model(config()), train, OptimConfig(name="adamw"))
    attempt("pairs of texts", make_model(config()), train, left=3)
    attempt("dropped patches", make_model(config()), train, drops=True)
    small = StepOptions(memory=StepMemory(micro_batch_size=2, logit_rows=2))
    attempt("micro-batches", make_model(config()), train, options=small)
    recomputing = make_model(config())
    recomputing.encoder.recomputes_activations = True
    attempt("activation checkpointing", recomputing, train)
    vocabulary = Vocabulary(train_vocabulary([f"text {i} of many" for i in range(99)], size=500))
    for kind in ("tokens_two_towers", "tokens_one_tower"):
        baseline = config(text_input=kind, vocabulary_size=500)
        attempt(kind, make_model(baseline, vocabulary=vocabulary), train)
    labels = ("no", "yes", "who knows")
    for task, pictures in (("text_classification", False), ("vqa", True)):
        classifier = ClassifierConfig(task=task, labels=labels)
        attempt(task, make_model(config(), classifier=classifier), fine_tune, pictures=pictures)
    classifier = ClassifierConfig(task="glue", glue_task="sts-b")
    attempt("scores", make_model(config(), classifier=classifier), fine_tune, pictures=False)


if __name__ == "__main__":
    main()
