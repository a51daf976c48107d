"""What Ray's controller loads to form the group of ranks, and what it starts beside them."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayTaskError
from ray.train import ControllerError

from clippo_core.errors import ConfigError, StorageError
from pipelines.training import rank_group
from pipelines.training.rank_group import RankGroup
from pipelines.training.run import _outcome_of


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_ranks_whose_torch_cannot_use_their_gpu_say_so():
    with pytest.raises(ConfigError, match=r"^Ray has set a GPU aside, .*--scaling\.use-gpu$"):
        rank_group._join("nccl", 0, 1, 60)


def test_what_a_rank_says_before_it_trains_is_what_the_command_says():
    said = ConfigError("no way")
    wrapped = ControllerError(RayTaskError("_join", "a stack of calls", said))
    with pytest.raises(ConfigError) as raised:
        _outcome_of(SimpleNamespace(error=wrapped))
    assert str(raised.value) == "no way"
    other = ControllerError(RayTaskError("_join", "a stack of calls", OSError("gone")))
    with pytest.raises(StorageError, match="the training workers failed"):
        _outcome_of(SimpleNamespace(error=other))


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
