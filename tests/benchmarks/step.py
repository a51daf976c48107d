"""A training step beside open_clip's: `python -m tests.benchmarks.step [--quick]`.

CLIPPO B/16 at 224 px against open_clip's ViT-B-16, the same pictures and captions of COCO's length,
bfloat16 autocast on a GPU that has it, else float32, or as
asked (on a GPU both compiled): forward and backward pass, and the whole step with the optimizer
that each recipe has. Utilisation is the arithmetic of the matrix products, as torch counts it, over
the rate that products of the same shapes reach in the same run.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from typing import cast, get_args

import numpy as np
import open_clip
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clippo_core.config import ClippoConfig, OptimConfig, Precision, TextPatches
from clippo_core.modeling import Clippo, make_model, without_values
from clippo_core.modeling.patch_sets import text_patches
from clippo_core.optim import clip_gradients
from clippo_core.training.patch_dropping import draw_kept_patches
from clippo_core.training.precision import autocast, find_precision
from clippo_core.training.state import TrainState
from clippo_core.training.step import (
    PairBatch,
    StepOptions,
    accumulate_gradients,
    train_step,
)
from tests.benchmarks import report
from tests.benchmarks.captions import captions

OPTIM = OptimConfig()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: What is asked of each, relative to open_clip.
AIMS = {"all": 0.57, "occupied": 1.0, "occupied, FLIP 50 %": 1.7}
Clock = Callable[[], float]
Calls = dict[str, Callable[[], object]]


def matrix_product_rate(
    tokens: int, precision: Precision, device: torch.device, clock: Clock
) -> float:
    """FLOP/s of the dense layers' products, forward and both gradients, each B/16's shapes."""
    shapes = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    flops, calls = 0.0, {}
    for number, (fan_in, fan_out) in enumerate(shapes):
        x, kernel, y = (
            torch.randn(shape, device=device, dtype=getattr(torch, precision))
            for shape in ((tokens, fan_in), (fan_in, fan_out), (tokens, fan_out))
        )
        flops += 3 * 2 * tokens * fan_in * fan_out
        calls |= {
            f"{number} forward": lambda x=x, kernel=kernel: synchronized(x @ kernel),
            f"{number} input": lambda y=y, kernel=kernel: synchronized(y @ kernel.T),
            f"{number} kernel": lambda x=x, y=y: synchronized(x.T @ y),
        }
    return flops / sum(report.seconds_each(calls, rounds=5, clock=clock).values())


def synchronized(result: torch.Tensor) -> torch.Tensor:
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


class Ours:
    """CLIPPO with some of the patches; all of these share the weights and the optimizer."""

    def __init__(
        self,
        state: TrainState,
        name: str,
        texts: list[str],
        images: torch.Tensor,
        precision: Precision,
    ):
        self.precision: Precision = precision
        self.which = cast(TextPatches, name.partition(",")[0])
        with without_values():
            model = Clippo(ClippoConfig(text_patches=self.which), font=state.model.renderer.font)
        model.encoder, model.log_logit_scale = state.model.encoder, state.model.log_logit_scale
        self.state = TrainState(model=model, optimizer=state.optimizer)
        self.texts = model.renderer.render_batch(texts)
        kept = None
        if "FLIP" in name:
            drawn = draw_kept_patches(
                0.5, seed=0, step=0, first_image=0, num_images=len(images), num_patches=196
            )
            kept = torch.from_numpy(drawn).to(images.device)
        self.batch = PairBatch(images, self.texts, None, kept)

    def gradients(self) -> None:
        self.state.optimizer.zero_grad(set_to_none=True)
        options = StepOptions(precision=self.precision)
        loss = accumulate_gradients(self.state.model, self.batch, options)
        synchronized(loss)

    def step(self) -> None:
        options = StepOptions(precision=self.precision)
        metrics = train_step(self.state, self.batch, OPTIM, total_steps=100_000, options=options)
        synchronized(metrics["loss"])

    def counts(self) -> tuple[float, float]:
        """GFLOP of a pair's forward and backward pass; encoded patches of a text."""
        # The counter does not know the fused attention of a CPU.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.gradients()
        sets = text_patches(self.texts, self.which, patch_size_px=16, device=torch.device("cpu"))
        patches = int(sets.lengths.sum())
        return counter.get_total_flops() / len(self.batch) / 1e9, patches / len(self.batch)


class Theirs:
    """open_clip's ViT-B-16, by open_clip's own loss."""

    def __init__(self, texts: list[str], device: torch.device, precision: Precision):
        self.precision: Precision = precision
        logging.getLogger().setLevel(logging.ERROR)
        self.model = open_clip.create_model("ViT-B-16", pretrained=None, device=device)
        self.tokens = open_clip.get_tokenizer("ViT-B-16")(texts).to(device)
        images = torch.randn(len(texts), 3, 224, 224, generator=torch.Generator().manual_seed(0))
        self.images = images.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, fused=True)
        self.loss = open_clip.ClipLoss()
        if device.type == "cuda":
            self.model.compile()

    def gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(DEVICE, self.precision):
            image, text, scale = self.model(self.images, self.tokens)
            loss = self.loss(image, text, scale)
        loss.backward()
        synchronized(loss)

    def step(self) -> None:
        self.gradients()
        synchronized(clip_gradients(self.model.parameters(), 1.0))
        self.optimizer.step()


def measure(
    batch: int, rounds: int, precision: Precision, device: torch.device, clock: Clock
) -> dict[str, object]:
    texts = captions(batch)
    theirs = Theirs(texts, device, precision)
    state = TrainState.create(make_model(ClippoConfig(), seed=0), OPTIM, device=device)
    if device.type == "cuda":
        state.model.encoder.compile_blocks()
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    images = torch.from_numpy(pixels).to(device)
    ours = {name: Ours(state, name, texts, images, precision) for name in AIMS}
    gradients: Calls = {"open_clip": theirs.gradients}
    steps: Calls = {"open_clip": theirs.step}
    gradients |= {name: competitor.gradients for name, competitor in ours.items()}
    steps |= {name: competitor.step for name, competitor in ours.items()}
    rates = [matrix_product_rate(batch * 220, precision, device, clock)]
    seconds = {
        "forward and backward": report.seconds_each(gradients, rounds=rounds, clock=clock),
        "whole step": report.seconds_each(steps, rounds=rounds, clock=clock),
    }
    rates.append(matrix_product_rate(batch * 220, precision, device, clock))
    rate = float(np.mean(rates))
    figures: dict[str, object] = {
        "batch": batch,
        "caption_characters": float(np.mean([len(text) for text in texts])),
        "matrix_product_gflop_per_s": rate / 1e9,
    }
    for name in gradients:
        of_name = {f"{part}, pairs/s": batch / taken[name] for part, taken in seconds.items()} | {
            f"{part}, of open_clip": taken["open_clip"] / taken[name]
            for part, taken in seconds.items()
        }
        if name in ours:
            gflop, patches = ours[name].counts()
            of_name |= {
                "aim": AIMS[name],
                "gflop_per_pair": gflop,
                "text_patches": patches,
                "utilisation": gflop * 1e9 * batch
                / seconds["forward and backward"][name] / rate,
            }  # fmt: skip
        figures[name] = of_name
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small batch, two rounds")
    parser.add_argument("--batch", type=int, help="pairs")
    parser.add_argument(
        "--one-core", action="store_true", help="one thread, and its CPU time: for a busy machine"
    )
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="default: bfloat16 if supported"
    )
    arguments = parser.parse_args()
    if arguments.one_core:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.one_core else time.perf_counter
    batch = arguments.batch or (8 if arguments.quick else 32 if DEVICE.type == "cpu" else 512)
    precision = find_precision(arguments.precision or "auto", DEVICE)
    figures = measure(batch, 2 if arguments.quick else 5, precision, DEVICE, clock)
    figures |= {"threads": torch.get_num_threads(), "precision": precision}
    for name, values in figures.items():
        if not isinstance(values, dict):
            shown = values if isinstance(values, str) else f"{values:,.1f}"
            print(f"{name:<32}{shown:>10}")
            continue
        print(name)
        for key, value in values.items():
            print(f"  {key:<40}{value:>10,.3f}")
    report.write("step", figures)


if __name__ == "__main__":
    main()
