"""Embedding beside open_clip's: `python -m tests.benchmarks.embed [--quick]`.

Encoded pictures and captions in, embeddings out, by ViT-B/16 at 224 px in bfloat16: this project's
decoder, renderer and model in one process, against open_clip's `encode_image` and `encode_text` fed
by a torch DataLoader with open_clip's own transform and tokenizer. What Ray Data adds to `python -m
pipelines embed` is measured by the stream's benchmark.
"""

from __future__ import annotations

import argparse
import io
import logging
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clippo_core.config import ClippoConfig, TextPatches
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from tests.benchmarks import report
from tests.benchmarks.captions import captions
from tests.benchmarks.photographs import encode, rough

BATCH = 64


class Pairs(Dataset):
    """What a person would write for open_clip."""

    def __init__(self, files: list[bytes], texts: list[str], transform: Callable):
        self.files, self.texts, self.transform = files, texts, transform
        self.tokenize = open_clip.get_tokenizer("ViT-B-16")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.transform(Image.open(io.BytesIO(self.files[number])))
        return image, self.tokenize([self.texts[number]])[0]


def embed_with_open_clip(files: list[bytes], texts: list[str], device: torch.device) -> Callable:
    logging.getLogger().setLevel(logging.ERROR)
    model, _, transform = open_clip.create_model_and_transforms(
        "ViT-B-16", pretrained=None, device=device
    )
    model.eval()

    def run(count: int) -> None:
        loader = DataLoader(Pairs(files[:count], texts[:count], transform), batch_size=BATCH)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            for images, tokens in loader:
                model.encode_image(images.to(device), normalize=True).cpu()
                model.encode_text(tokens.to(device), normalize=True).cpu()

    return run


def embed_with_clippo(
    files: list[bytes], texts: list[str], which, device: torch.device
) -> Callable:
    torch.manual_seed(0)
    model = Clippo(ClippoConfig(text_patches=which)).to(device).eval()

    def run(count: int) -> None:
        for start in range(0, count, BATCH):
            part = slice(start, min(start + BATCH, count))
            pixels = [decode_image(f, model.config.image, image_size_px=224) for f in files[part]]
            with torch.autocast(device.type, torch.bfloat16):
                model.encode_images(np.stack(pixels))
                model.encode_texts(texts[part])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="128 pairs instead of 10,000")
    parser.add_argument("--pairs", type=int, help="pairs to embed")
    parser.add_argument(
        "--one-core", action="store_true", help="one thread, and its CPU time: for a busy machine"
    )
    arguments = parser.parse_args()
    count = arguments.pairs or (128 if arguments.quick else 10_000)
    if arguments.one_core:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.one_core else time.perf_counter
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distinct = [encode(rough(640, 480, seed=seed), "JPEG", quality=90) for seed in range(16)]
    files, texts = [distinct[n % 16] for n in range(count)], captions(count)
    runs = {"open_clip": embed_with_open_clip(files, texts, device)} | {
        which: embed_with_clippo(files, texts, which, device) for which in get_args(TextPatches)
    }
    for run in runs.values():
        run(min(count, 16))
    seconds = report.seconds_each(
        {name: lambda run=run: run(count) for name, run in runs.items()},
        rounds=3 if arguments.quick else 1,
        warm_up=0,
        clock=clock,
    )
    figures = {"pairs": count, "threads": torch.get_num_threads()} | {
        name: {"pairs_per_s": count / taken, "of_open_clip": seconds["open_clip"] / taken}
        for name, taken in seconds.items()
    }
    for name, values in figures.items():
        if isinstance(values, dict):
            print(f"{name:<12}" + "".join(f"{k:>16}{v:>10,.2f}" for k, v in values.items()))
    report.write("embed", figures)


if __name__ == "__main__":
    main()
