"""What Ray's controller loads to form the group of ranks, and what it starts beside them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines.training.rank_group import RankGroup


def test_the_controllers_side_does_without_torch():
    code = (
        "import sys; from pipelines.training.rank_group import RankGroup; "
        "RankGroup('gloo', 60).backend_cls(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "False\n"


def test_a_rank_runs_in_rays_context_for_torch():
    from ray.train.torch import TorchConfig

    group = RankGroup("gloo", 60)
    assert group.train_func_context is TorchConfig().train_func_context
    ours, theirs = group.backend_cls, TorchConfig().backend_cls
    assert ours.share_cuda_visible_devices == theirs.share_cuda_visible_devices
    assert group.framework == TorchConfig().framework


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_places_are_cleaned_up_where_ray_outlives_the_run(
    address: str | None, monkeypatch: pytest.MonkeyPatch
):
    from ray.train import ScalingConfig

    from pipelines.training.trainer import Trainer

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    trainer = Trainer(print, torch_config=RankGroup("gloo", 60), scaling_config=ScalingConfig())
    started = [type(one).__name__ for one in trainer._create_default_callbacks()]
    assert ("PlacementGroupCleanerCallback" in started) == bool(address)
    assert "DatasetsCallback" in started
