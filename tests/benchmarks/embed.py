"""Embedding beside open_clip's: `python -m tests.benchmarks.embed [--quick]`.

Encoded pictures and captions in, embeddings out, at 224 px, in bfloat16 where the device has it:
this project's decoder, renderer and model in one process, against open_clip's `encode_image` and
`encode_text` fed by a torch DataLoader with open_clip's own transform and tokenizer, towers of the
same size. With `--command`, what `python -m pipelines embed` does once Ray is up: two tasks of one
core that start, load the checkpoint and write Parquet.
"""

from __future__ import annotations

import argparse
import io
import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clippo_core.checkpoints import save_checkpoint
from clippo_core.config import ClippoConfig, TextPatches, VitConfig
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from clippo_core.training.precision import autocast, find_precision
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.embedding import EmbeddingJob, embed
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.storage import Location
from tests.benchmarks import report
from tests.benchmarks.captions import captions
from tests.benchmarks.photographs import encode, rough

BATCH = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = find_precision("auto", DEVICE)
#: open_clip's names, and ours of the same towers.
TOWERS = {
    "ViT-B-16": VitConfig(),
    "ViT-S-32": VitConfig(width=384, mlp_dim=1536, num_heads=6, patch_size_px=32, embed_dim=384),
}


class Pairs(Dataset):
    """What a person would write for open_clip."""

    def __init__(self, files: list[bytes], texts: list[str], transform: Callable):
        self.files, self.texts, self.transform = files, texts, transform
        self.tokenize = open_clip.get_tokenizer("ViT-B-16")  # every tower's

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.transform(Image.open(io.BytesIO(self.files[number])))
        return image, self.tokenize([self.texts[number]])[0]


def embed_with_open_clip(tower: str, files: list[bytes], texts: list[str]) -> Callable:
    logging.getLogger().setLevel(logging.ERROR)
    model, _, transform = open_clip.create_model_and_transforms(
        tower, pretrained=None, device=DEVICE
    )
    model.eval()

    def run(count: int) -> None:
        loader = DataLoader(Pairs(files[:count], texts[:count], transform), batch_size=BATCH)
        with torch.no_grad(), autocast(DEVICE, PRECISION):
            for images, tokens in loader:
                model.encode_image(images.to(DEVICE), normalize=True).cpu()
                model.encode_text(tokens.to(DEVICE), normalize=True).cpu()

    return run


def embed_with_clippo(
    tower: str, files: list[bytes], texts: list[str], which: TextPatches
) -> Callable:
    torch.manual_seed(0)
    config = ClippoConfig(vit=TOWERS[tower], text_patches=which)
    model = Clippo(config).to(DEVICE).eval()

    def run(count: int) -> None:
        for start in range(0, count, BATCH):
            part = slice(start, min(start + BATCH, count))
            pixels = [decode_image(f, model.config.image, image_size_px=224) for f in files[part]]
            with autocast(DEVICE, PRECISION):
                model.encode_images(np.stack(pixels))
                model.encode_texts(texts[part])

    return run


def embed_by_command(tower: str, files: list[bytes], texts: list[str], scratch: Path) -> Callable:
    config = ClippoConfig(vit=TOWERS[tower], text_patches="occupied")
    checkpoint = scratch / "checkpoint"
    save_checkpoint(checkpoint, Clippo(config))
    calls = itertools.count()

    def run(count: int) -> None:
        call = next(calls)
        writer = ShardWriter(Location.of(scratch / f"pairs-{call}"), name="pairs")
        for number, (file, text) in enumerate(zip(files[:count], texts[:count], strict=True)):
            writer.add(RawSample(f"{number:05d}", file, [text], None))
        writer.close()
        job = EmbeddingJob(
            str(checkpoint),
            "data set",
            str(scratch / f"pairs-{call}"),
            str(scratch / f"out-{call}"),
            PRECISION,
        )
        # With a part of a GPU some tasks decode while others encode.
        summary = embed(job, cpus=1, gpus=0.1 if DEVICE.type == "cuda" else 0, max_tasks=None)
        assert summary.num_embeddings == 2 * count

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="24 pairs instead of 10,000, two rounds"
    )
    parser.add_argument("--pairs", type=int, help="pairs to embed")
    parser.add_argument("--tower", choices=TOWERS, default="ViT-B-16")
    parser.add_argument(
        "--text-patches", nargs="+", choices=get_args(TextPatches), default=get_args(TextPatches)
    )
    parser.add_argument("--command", action="store_true", help="the command beside them")
    parser.add_argument(
        "--one-core", action="store_true", help="one thread, and its CPU time: for a busy machine"
    )
    arguments = parser.parse_args()
    count = arguments.pairs or (24 if arguments.quick else 10_000)
    if arguments.one_core:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.one_core else time.perf_counter
    distinct = [encode(rough(640, 480, seed=seed), "JPEG", quality=90) for seed in range(16)]
    files, texts = [distinct[n % 16] for n in range(count)], captions(count)
    tower = arguments.tower
    runs = {"open_clip": embed_with_open_clip(tower, files, texts)} | {
        which: embed_with_clippo(tower, files, texts, which) for which in arguments.text_patches
    }
    with ExitStack() as stack:
        if arguments.command:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(ray_session(cpus=2, gpus=int(DEVICE.type == "cuda")))
            runs["pipelines embed, occupied"] = embed_by_command(tower, files, texts, scratch)
        for run in runs.values():
            run(min(count, 8))
        seconds = report.seconds_each(
            {name: lambda run=run: run(count) for name, run in runs.items()},
            rounds=2 if arguments.quick else 1,
            warm_up=0,
            clock=clock,
        )
    figures = {
        "tower": tower,
        "pairs": count,
        "threads": torch.get_num_threads(),
        "precision": PRECISION,
    } | {
        name: {"pairs_per_s": count / taken, "of_open_clip": seconds["open_clip"] / taken}
        for name, taken in seconds.items()
    }
    for name, values in figures.items():
        if isinstance(values, dict):
            print(f"{name:<28}" + "".join(f"{k:>16}{v:>10,.2f}" for k, v in values.items()))
    report.write("embed", figures)


if __name__ == "__main__":
    main()
