"""What makes a step on a CPU faster, part by part: `python -m tests.benchmarks.step_parts`.

Each part in turns with what it stands in for: GELU in bfloat16 of the rows of some pairs of B/16,
the optimizer of B/16, tokens padded to few totals (the demo's model, each batch another), and a
forward and backward pass in a thread, as Ray Train has one, in processes that keep what they free
or do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clippo_core.config import ClippoConfig, OptimConfig, TextPatches
from clippo_core.modeling import vit
from clippo_core.modeling.gelu import gelu
from clippo_core.optim import adafactor, make_optimizer
from clippo_core.training.precision import find_precision
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, train_step
from pipelines.config.presets import demo
from pipelines.heap import keep_freed_memory, use_one_heap
from tests.benchmarks import report
from tests.benchmarks.captions import captions

CPU = torch.device("cpu")
PRECISION = find_precision("auto", CPU)
OPTIM = OptimConfig()


def of_gelu(rows: int) -> dict[str, float]:
    """Nanoseconds for an element, on all threads."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(rows, 3072, generator=generator).bfloat16() for _ in range(2))
    x.requires_grad_()

    def backward(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        y = function(x)
        return lambda: torch.autograd.grad(y, x, upstream, retain_graph=True)

    def by_torch(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    seconds = report.seconds_each(
        {
            "forward, torch": lambda: by_torch(x),
            "forward, looked up": lambda: gelu(x),
            "backward, torch": backward(by_torch),
            "backward, looked up": backward(gelu),
        }
    )
    return {f"{name}, ns": 1e9 * taken / x.numel() for name, taken in seconds.items()}


def of_optimizers() -> dict[str, float]:
    """Milliseconds for an update of B/16."""
    state = TrainState.create(ClippoConfig(), OPTIM, seed=0, device=CPU)
    adamw = make_optimizer(state.model, OptimConfig(name="adamw"))
    for param in state.model.parameters():
        param.grad = torch.full_like(param, 1e-3)

    def by_operations() -> None:
        with mock.patch.object(adafactor, "_is_compiled", lambda _: False):
            state.optimizer.step()

    seconds = report.seconds_each(
        {
            "Adafactor, torch's operations": by_operations,
            "Adafactor, compiled": state.optimizer.step,
            "AdamW, torch's fused one": adamw.step,
        }
    )
    return {f"{name}, ms": 1e3 * taken for name, taken in seconds.items()}


def of_padding(steps: int) -> dict[str, float]:
    """Seconds for a step of the demo's model, 256 pairs whose texts differ from step to step."""
    config = demo().model
    state = TrainState.create(config, OPTIM, seed=0, device=CPU)
    rng = np.random.default_rng(0)
    words = " ".join(captions(500)).split()
    size = config.render.image_size_px
    taken: dict[str, list[float]] = {"padded": [], "as they are": []}
    for _ in range(steps + 2):
        for name, seconds in taken.items():
            texts = [" ".join(rng.choice(words, rng.integers(2, 30))) for _ in range(256)]
            images = torch.from_numpy(rng.integers(0, 256, (256, size, size, 3), np.uint8))
            batch = PairBatch(images, state.model.prepare_texts(texts))
            few = vit.PRODUCT_SIZES if name == "padded" else 2**30
            started = time.perf_counter()
            with mock.patch.object(vit, "PRODUCT_SIZES", few):
                train_step(state, batch, OPTIM, total_steps=1000, precision=PRECISION)
            seconds.append(time.perf_counter() - started)
    # The mean: what is compiled for a new size is what padding saves.
    return {f"{name}, s": float(np.mean(seconds[2:])) for name, seconds in taken.items()}


def of_heap(pairs: int, rounds: int) -> dict[str, float]:
    """Seconds of a forward and backward pass with all patches of texts, in a thread."""
    found: dict[str, list[float]] = {"kept": [], "given back": []}
    for _ in range(2):
        for name, seconds in found.items():
            command = [sys.executable, "-m", __spec__.name, "--heap", name, f"{pairs}", f"{rounds}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds += json.loads(done.stdout)
    return {f"{name}, s": float(np.median(seconds)) for name, seconds in found.items()}


def passes_in_a_thread(freed: str, pairs: int, rounds: int) -> list[float]:
    """Seconds of each, in this process."""
    from tests.benchmarks.step import Ours

    if freed == "kept":
        use_one_heap()
    taken: list[float] = []

    def work() -> None:
        if freed == "kept":
            keep_freed_memory()
        every: TextPatches = "all"
        state = TrainState.create(ClippoConfig(text_patches=every), OPTIM, seed=0, device=CPU)
        images = torch.zeros(pairs, 224, 224, 3, dtype=torch.uint8)
        ours = Ours(state, every, captions(pairs), images, PRECISION)
        for _ in range(rounds + 1):
            started = time.perf_counter()
            ours.gradients()
            taken.append(time.perf_counter() - started)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 pairs, 12 batches")
    parser.add_argument("--heap", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.heap:
        freed, pairs, rounds = arguments.heap
        print(json.dumps(passes_in_a_thread(freed, int(pairs), int(rounds))))
        return
    pairs = 8 if arguments.quick else 32
    figures = {f"a pass of {pairs} pairs in a thread, memory": of_heap(pairs, 1)}
    keep_freed_memory()
    figures |= {f"GELU of {rows} rows": of_gelu(rows) for rows in (1760, 7040)}
    figures["an update of B/16"] = of_optimizers()
    if PRECISION == "bfloat16":
        figures["256 pairs of the demo, tokens"] = of_padding(12 if arguments.quick else 60)
    report.show(figures)
    report.write("step_parts", {**figures, "precision": PRECISION})


if __name__ == "__main__":
    main()
