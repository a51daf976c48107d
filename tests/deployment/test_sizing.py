"""How many render workers a number of GPUs needs."""

from __future__ import annotations

import dataclasses

import pytest

from clippo_core.config import ClippoConfig, RenderConfig, VitConfig, to_json
from cluster.sizing import (
    BYTE_S,
    ELSEWHERE_S,
    TASK_OVERHEAD_S,
    RendererRate,
    main,
    predict,
)
from pipelines.config.settings import DataConfig, RunConfig, TrainConfig
from tests.integration.colours import colour_samples, write_samples

RATE = RendererRate(rows_per_s=500.0, rows_per_block=1000, bytes_per_row=20_000, cpu_share=1.0)


def test_eight_gpus_need_eight_times_what_one_needs():
    one, eight = (predict(RATE, gpus=n, pairs_per_gpu_s=1000.0) for n in (1, 8))
    # 1000 rows take 2 s, and 0.037 s to be handed over: 491 rows/s.
    assert (one.renderers, eight.renderers) == (3, 17)
    assert eight.bytes_per_s == 8000 * 20_000
    assert eight.blocks_per_s == 8.0


def test_small_blocks_are_dear():
    small = dataclasses.replace(RATE, rows_per_block=4)
    task_s = 4 / 500 + TASK_OVERHEAD_S + BYTE_S * 80_000
    assert small.rows_per_s_in_ray(1) == pytest.approx(4 / task_s)
    assert small.rows_per_s_in_ray(2) == pytest.approx(2 * 4 / task_s)


def test_workers_without_a_free_core_do_the_rest_of_the_work_as_well():
    alone, shared = (RATE.rows_per_s_in_ray(2, cores=cores) for cores in (3, 2))
    assert alone == RATE.rows_per_s_in_ray(2)
    assert 1000 * 2 / shared - 1000 * 2 / alone == pytest.approx(1000 * ELSEWHERE_S)


@pytest.mark.slow
@pytest.mark.parametrize("text_input", ["pixels", "tokens_two_towers"])
def test_the_last_line_is_the_number_of_workers(text_input, tmp_path, capsys):
    source = write_samples(tmp_path / "colours", colour_samples(120))
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    config = RunConfig(
        model=ClippoConfig(
            vit=vit,
            render=RenderConfig(image_size_px=32),
            text_input=text_input,
            vocabulary_size=320,
        ),
        data=DataConfig(sources=(str(source),), run_length=4),
        train=TrainConfig(global_batch_size=16, precision="float32"),
    )
    (tmp_path / "run.json").write_text(to_json(config))
    words = [str(tmp_path / "run.json"), "--gpus", "2", "--seconds", "0.1"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert int(printed[-1]) >= 1
    assert any("pairs/s measured here" in line for line in printed)


def test_gpus_that_do_not_divide_the_batch_are_refused(tmp_path, capsys):
    source = write_samples(tmp_path / "colours", colour_samples(40))
    config = RunConfig(
        data=DataConfig(sources=(str(source),)), train=TrainConfig(global_batch_size=16)
    )
    (tmp_path / "run.json").write_text(to_json(config))
    assert main([str(tmp_path / "run.json"), "--gpus", "3"]) == 2
    assert "does not divide over 3 GPUs" in capsys.readouterr().err
