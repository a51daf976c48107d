"""A small data set, a small run, and one Ray for all tests of this folder."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import ray

from clippo_core.config import (
    ClippoConfig,
    OptimConfig,
    RenderConfig,
    ScheduleConfig,
    VitConfig,
)
from pipelines.config.settings import (
    DataConfig,
    RunConfig,
    ScalingConfig,
    StorageConfig,
    TrackingConfig,
    TrainConfig,
)
from pipelines.runtime.ray_session import ray_environment
from pipelines.tracking.mlflow_client import reach
from tests.integration.colours import colour_samples, write_samples


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 120 samples."""
    return write_samples(tmp_path_factory.mktemp("data") / "colours", colour_samples(120))


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: MLflow takes seconds to make one, a copy is the same."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    reach(f"sqlite:///{path}")
    return path


ConfigMaker = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, colours: Path, mlflow_tables: Path) -> ConfigMaker:
    """A run of seconds; groups of settings are changed by dictionaries."""
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_tables, tmp_path / "runs")

    def make(**changes: dict) -> RunConfig:
        vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
        schedule = ScheduleConfig(decay="constant", warmup_steps=None, cooldown_steps=None)
        config = RunConfig(
            preset="tiny",
            model=ClippoConfig(
                vit=vit, render=RenderConfig(image_size_px=32), text_patches="occupied"
            ),
            optim=OptimConfig(schedule=schedule),
            data=DataConfig(
                sources=(str(colours),), run_length=4, steps_per_task=1, record_keys=True
            ),
            train=TrainConfig(steps=12, global_batch_size=16, checkpoint_every=5, log_every=1),
            scaling=ScalingConfig(renderer_cpus=0.5, max_renderers=2, max_failures=1),
            storage=StorageConfig(root=str(tmp_path / "runs"), run="run"),
            # Each would take seconds; tests/integration/test_mlflow_server.py looks at them.
            tracking=TrackingConfig(pictures=False),
        )
        groups = {
            group: dataclasses.replace(getattr(config, group), **fields)
            for group, fields in changes.items()
        }
        return dataclasses.replace(config, **groups)

    return make


@contextmanager
def ray_on_this_machine() -> Iterator[None]:
    """Start a Ray; its CPUs and its GPU are bookkeeping, there may be fewer.

    Without CLIPPO_GPU the GPU is one that no machine has.
    """
    visible = {} if os.environ.get("CLIPPO_GPU") else {"CUDA_VISIBLE_DEVICES": "99"}
    with (
        mock.patch.dict(os.environ, visible),
        ray_environment(is_cluster=False),
    ):
        ray.init(
            num_cpus=4,
            num_gpus=1 if visible else None,
            include_dashboard=False,
            object_store_memory=300_000_000,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of a file, since some files start their own."""
    with ray_on_this_machine():
        yield
