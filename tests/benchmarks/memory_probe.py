"""Peak memory and time of a training step, in a process of its own.

`python -m tests.benchmarks.memory_probe BATCH [MICRO_BATCH [LOGIT_ROWS]]` prints JSON. The
resident set is compared with what it was when a small step had loaded every kernel and the batch
was there: in a run it lies in Ray's object store. One thread, so that CPU time says what a step
takes on a busy machine too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clippo_core.config import ClippoConfig, OptimConfig, Precision
from clippo_core.modeling import make_model
from clippo_core.modeling.flops import encoded_patches
from clippo_core.training.memory import StepLoad, training_bytes
from clippo_core.training.precision import find_precision
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, StepMemory, StepOptions, train_step
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from pipelines.config.presets import demo
from tests.benchmarks.captions import captions

OPTIM = OptimConfig(name="adamw")
PRECISION = find_precision("auto", torch.device("cpu"))

#: For the environment: what is freed goes back to the system, so that the resident set is what the
#: step holds; glibc else keeps up to a third more.
TIGHT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def resident_bytes(field: str) -> int:
    """`VmRSS`, or its peak `VmHWM`."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def make_batch(state: TrainState, pairs: int) -> PairBatch:
    size = state.model.config.render.image_size_px
    images = np.random.default_rng(0).integers(0, 256, (pairs, size, size, 3), np.uint8)
    texts = state.model.prepare_texts(captions(pairs))
    return PairBatch(torch.from_numpy(images), texts)


def load_of(state: TrainState, batch: PairBatch, **settings: Any) -> StepLoad:
    """What a step on that batch is to its memory."""
    config = state.model.config
    patches = encoded_patches(config, batch.texts)
    return StepLoad(
        num_parameters=sum(param.numel() for param in state.model.parameters()),
        pairs=len(batch),
        columns=len(batch),
        image_patches=config.grid_size**2,
        text_patches=round(float(patches.mean())),
        longest_text=int(patches.max()),
        **settings,
    )


def probe(
    model: ClippoConfig,
    pairs: int,
    memory: StepMemory,
    *,
    steps: int = 2,
    precision: Precision = PRECISION,
    recomputes_activations: bool = False,
) -> dict[str, float]:
    """The peak of some steps beside its estimate, and the mean seconds of their second half.

    In the first half memory is new to the process. No minimum: where a machine's speed comes and
    goes, that of short steps is none of long ones.
    """
    vocabulary = None
    if model.reads_tokens:
        vocabulary = Vocabulary(train_vocabulary(captions(2000), size=model.vocabulary_size))
    warm = TrainState.create(make_model(model, seed=0, vocabulary=vocabulary), OPTIM)
    options = StepOptions(precision=precision)
    train_step(warm, make_batch(warm, 16), OPTIM, total_steps=100, options=options)
    batch = make_batch(warm, pairs)
    del warm
    before = resident_bytes("VmRSS")
    # The peak counts anew from here.
    Path("/proc/self/clear_refs").write_text("5")
    state = TrainState.create(make_model(model, seed=0, vocabulary=vocabulary), OPTIM)
    for tower in state.model.towers:
        tower.recomputes_activations = recomputes_activations
    options, seconds = StepOptions(precision=precision, memory=memory), []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        train_step(state, batch, OPTIM, total_steps=100, options=options)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.mean(seconds[steps // 2 :], axis=0)
    load = load_of(
        state,
        batch,
        precision=precision,
        memory=memory,
        recomputes_activations=recomputes_activations,
    )
    return {
        "peak_bytes": resident_bytes("VmHWM") - before,
        "estimated_bytes": training_bytes(model, OPTIM, load),
        "wall_s": float(wall_s),
        "cpu_s": float(cpu_s),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = [int(argument) for argument in sys.argv[1:]]
    micro, rows = (*numbers[1:], None, None)[:2]
    memory = StepMemory(micro_batch_size=micro, logit_rows=rows)
    # As many pairs either way, where the large batch is of 1,024.
    figures = probe(demo().model, numbers[0], memory, steps=8 if micro is None else 2)
    print(json.dumps(figures))
