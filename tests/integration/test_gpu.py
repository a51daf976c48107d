"""What only a GPU can show: `CLIPPO_GPU=1 python -m pytest tests/integration/test_gpu.py`."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from clippo_core.checkpoints import load_checkpoint, save_checkpoint
from clippo_core.config import (
    ClippoConfig,
    OptimConfig,
    Precision,
    RenderConfig,
    ScheduleConfig,
    VitConfig,
)
from clippo_core.modeling import Clippo, make_model
from clippo_core.rendering import TextRenderer
from clippo_core.training.memory import training_bytes
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, StepMemory, StepOptions, train_step
from pipelines.config.resolution import resolve
from pipelines.config.settings import EvaluationOptions
from pipelines.embedding import EmbeddingJob, embed
from pipelines.evaluation.tasks import EvaluationTasks, parse_benchmark
from pipelines.training.run import train
from tests.benchmarks.captions import captions
from tests.benchmarks.memory_probe import load_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and CLIPPO_GPU=1"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = VitConfig(width=64, depth=2, mlp_dim=128, num_heads=2, patch_size_px=16, embed_dim=32)
TEXTS = ("a", "two patches and more", "rows of text " * 9, "", "日本語", "b")


def model_config(**settings: object) -> ClippoConfig:
    return ClippoConfig(vit=SMALL, render=RenderConfig(image_size_px=64), **settings)


def make_state(config: ClippoConfig, optim: OptimConfig, device: torch.device) -> TrainState:
    return TrainState.create(make_model(config, seed=0), optim, device=device)


def make_batch(state: TrainState, texts: Sequence[str]) -> PairBatch:
    size = state.model.config.render.image_size_px
    pixels = np.random.default_rng(0).integers(0, 256, (len(texts), size, size, 3), np.uint8)
    return PairBatch(torch.from_numpy(pixels), state.model.prepare_texts(texts))


def losses(
    state: TrainState,
    optim: OptimConfig,
    *,
    precision: Precision = "float32",
    memory: StepMemory | None = None,
) -> list[float]:
    """Of five steps on the same pairs: a wrong update shows from the second on."""
    batch = make_batch(state, TEXTS)
    options = StepOptions(precision=precision, memory=memory or StepMemory())
    found = (train_step(state, batch, optim, total_steps=1000, options=options) for _ in range(5))
    return [float(metrics["loss"]) for metrics in found]


def constant(name: str = "adafactor") -> OptimConfig:
    schedule = ScheduleConfig(decay="constant", warmup_steps=0, cooldown_steps=0)
    return OptimConfig(name=name, schedule=schedule)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("which", ["all", "occupied"])
def test_steps_are_those_of_a_cpu(which: str, optimizer: str):
    config, optim = model_config(text_patches=which), constant(optimizer)
    on_cpu = losses(make_state(config, optim, CPU), optim)
    assert on_cpu[-1] < on_cpu[0]
    on_gpu = losses(make_state(config, optim, GPU), optim)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ways_to_make_a_step_agree(precision: Precision):
    config, optim = model_config(text_patches="occupied"), constant()
    plain = losses(make_state(config, optim, GPU), optim, precision=precision)
    tolerance = 1e-3 if precision == "float32" else 2e-2
    recomputing = make_state(config, optim, GPU)
    recomputing.model.encoder.recomputes_activations = True
    small = StepMemory(micro_batch_size=2, logit_rows=2)
    for state, memory in ((recomputing, None), (make_state(config, optim, GPU), small)):
        found = losses(state, optim, precision=precision, memory=memory)
        assert found == pytest.approx(plain, rel=tolerance)


def test_bfloat16_learns_as_float32():
    config, optim = model_config(text_patches="occupied"), constant()
    exact, rounded = (
        losses(make_state(config, optim, GPU), optim, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, rel=0.05)


def test_texts_are_drawn_as_on_a_cpu():
    rasters = TextRenderer(RenderConfig(image_size_px=224)).render_batch(list(TEXTS))
    drawn = rasters.to_tensor(GPU)
    assert drawn.device.type == "cuda"
    np.testing.assert_array_equal(drawn.cpu().numpy(), rasters.to_pixels())


@pytest.mark.slow
def test_embeddings_and_evaluations_are_those_of_a_cpu(local_ray, colours, tmp_path):
    """Two tasks share the GPU."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model", Clippo(model_config(text_patches="occupied")))
    vectors, accuracies = [], []
    for gpus in (0, 0.5):
        out = tmp_path / f"embedded-{gpus}"
        job = EmbeddingJob(str(tmp_path / "model"), "data set", str(colours), str(out))
        embed(job, cpus=1, gpus=gpus, max_tasks=2)
        vectors.append(np.stack(pq.read_table(out)["embedding"].to_numpy()))
        benchmarks = [parse_benchmark(f"zero_shot:{colours}")]
        tasks = EvaluationTasks(benchmarks, EvaluationOptions(), cpus=1, gpus=gpus, timeout_s=300)
        tasks.start(str(tmp_path / "model"))
        while not (reports := tasks.finished(wait_s=1)):
            pass
        assert reports[0].status == "ok", reports[0].message
        accuracies.append(reports[0].result["metrics"]["accuracy"])
    np.testing.assert_allclose(*vectors, atol=1e-3)
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_memory_estimate_is_within_15_percent_of_the_peak(recomputes: bool):
    config, optim, pairs = ClippoConfig(text_patches="occupied"), OptimConfig(), 64
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    state = make_state(config, optim, GPU)
    state.model.encoder.recomputes_activations = recomputes
    batch = make_batch(state, captions(pairs))
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        train_step(state, batch, optim, total_steps=1000, options=StepOptions(precision="bfloat16"))
    load = load_of(state, batch, precision="bfloat16", recomputes_activations=recomputes)
    estimate = training_bytes(config, optim, load)
    assert estimate == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.15)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("compiles", [False, True])
def test_a_run_learns_as_on_a_cpu(local_ray, make_config, compiles: bool):
    found = {}
    for use_gpu in (False, True):
        config = make_config(
            scaling={"use_gpu": use_gpu},
            train={"compile": compiles and use_gpu},
            storage={"run": f"gpu-{use_gpu}"},
        )
        summary = train(resolve(config))
        client = MlflowClient(summary.tracked.uri)
        history = client.get_metric_history(summary.tracked.run_id, "train/loss")
        found[use_gpu] = [point.value for point in history]
        metrics = client.get_run(summary.tracked.run_id).data.metrics
        assert ("memory/gpu_peak_gb/greatest" in metrics) == use_gpu
    assert len(found[True]) == 12
    assert found[True] == pytest.approx(found[False], rel=1e-2)
    model = load_checkpoint(summary.checkpoint.uri)
    assert model.encode_texts(["red"]).shape == (1, 16)
