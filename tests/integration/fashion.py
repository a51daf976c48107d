"""A stand-in for Fashion-MNIST, in its form: grey pictures whose shade tells the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.datasets.prepare.registry.fashion_mnist import CLASS_NAMES, write_fashion_mnist
from pipelines.runtime.storage import Location


def write_fashion(cache: Path, *, train: int = 320, test: int = 40) -> None:
    """Write all sets of `prepare fashion_mnist` into a data cache."""
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % len(CLASS_NAMES)
        noise = np.random.default_rng(count).integers(0, 20, (count, 28 * 28), np.uint8)
        pixels = labels[:, None] * np.uint8(25) + noise
        for name, header, values in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            content = np.concatenate([np.zeros(header, np.uint8), values.ravel()])
            files[f"{prefix}-{name}-ubyte"] = content
    write_fashion_mnist(files, Location.of(cache / "fashion_mnist"))
