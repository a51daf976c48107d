"""Encoded pictures to embeddings, in threads."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from clippo_core import encoding
from clippo_core.encoding import decoded_batches, encode_pictures
from clippo_core.errors import Rejected
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from clippo_core.training.precision import autocast
from tests.benchmarks.photographs import encode
from tests.unit.test_images import png_that_claims

NOISE = np.random.default_rng(0).integers(0, 256, (23, 40, 30, 3), np.uint8)
PICTURES = [encode(Image.fromarray(pixels)) for pixels in NOISE]
#: Rejected at the first, the fourth and the last place, each for a reason of its own.
MIXED = [None, *PICTURES[:2], b"no picture", *PICTURES[2:], PICTURES[0][:900]]
REASONS = {0: "missing_image", 3: "unknown_image_format", 25: "corrupt_image"}


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def one_by_one(model: Clippo) -> np.ndarray:
    size = model.config.render.image_size_px
    found = [decode_image(e, model.config.image, image_size_px=size) for e in MIXED]
    return np.stack([canvas for canvas in found if not isinstance(canvas, Rejected)])


@pytest.mark.parametrize("batch_size", [1, 4, 26, 99])
def test_pictures_are_those_decoded_one_by_one_and_rejects_keep_their_place(
    tiny_model: Clippo, batch_size: int
):
    batches = list(decoded_batches(tiny_model, enumerate(MIXED), batch_size=batch_size))
    assert len(batches) == -(-len(MIXED) // batch_size)
    names = [name for batch in batches for name in batch.names]
    assert names == [n for n in range(len(MIXED)) if n not in REASONS]
    canvases = np.concatenate([batch.canvases for batch in batches])
    np.testing.assert_array_equal(canvases, one_by_one(tiny_model))
    rejected = {name: found.reason for batch in batches for name, found in batch.rejected}
    assert rejected == REASONS


def test_embeddings_are_bit_for_bit_those_of_the_canvases(tiny_model: Clippo):
    found = encode_pictures(tiny_model, enumerate(MIXED))
    expected = tiny_model.encode_images(one_by_one(tiny_model))
    np.testing.assert_array_equal(found.embeddings, expected)
    assert [(name, problem.reason) for name, problem in found.rejected] == list(REASONS.items())
    means = encode_pictures(
        tiny_model,
        zip("abc", PICTURES, strict=False),
        encode=lambda canvases: canvases.mean(axis=(1, 2)).astype(np.float32),
    )
    assert (means.names, means.embeddings.shape) == (["a", "b", "c"], (3, 3))


def test_the_precision_is_that_of_the_caller(tiny_model: Clippo):
    exact = encode_pictures(tiny_model, enumerate(PICTURES)).embeddings
    with autocast(torch.device("cpu"), "bfloat16"):
        rounded = encode_pictures(tiny_model, enumerate(PICTURES)).embeddings
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.02)
    assert not np.array_equal(rounded, exact)


@pytest.mark.parametrize("pictures", [[], [None, b"no picture"]])
def test_of_nothing_there_is_an_embedding_of_the_right_width_for_none(
    tiny_model: Clippo, pictures: list[bytes | None]
):
    found = encode_pictures(tiny_model, enumerate(pictures))
    assert found.embeddings.shape == (0, 16)
    assert len(found.rejected) == len(pictures)


def test_memory_holds_a_batch_in_use_and_the_next_ones_however_many_pictures_there_are(
    tiny_model: Clippo, monkeypatch: pytest.MonkeyPatch
):
    num_decoded, alive, lock = 0, [], threading.Lock()

    def count(*arguments, **options):
        nonlocal num_decoded
        with lock:
            num_decoded += 1
        return decode_image(*arguments, **options)

    monkeypatch.setattr(encoding, "decode_image", count)
    endless = ((number, PICTURES[number % len(PICTURES)]) for number in range(10**9))
    for used, batch in enumerate(decoded_batches(tiny_model, endless, batch_size=5)):
        alive.append(weakref.ref(batch.canvases))
        time.sleep(0.02)
        # This batch, those before it, and the one after it.
        assert num_decoded <= 5 * (used + 2)
        assert sum(reference() is not None for reference in alive) == 1
        if used == 20:
            break


def test_the_next_batch_is_decoded_while_the_caller_is_busy(
    tiny_model: Clippo, monkeypatch: pytest.MonkeyPatch
):
    threads: set[str] = set()
    together = threading.Barrier(4, timeout=30)

    def meet(*arguments, **options):
        threads.add(threading.current_thread().name)
        together.wait()
        return decode_image(*arguments, **options)

    monkeypatch.setattr(encoding, "decode_image", meet)
    batches = decoded_batches(tiny_model, enumerate(PICTURES[:8]), batch_size=4)
    next(batches)
    threads.clear()
    deadline = time.monotonic() + 30
    while len(threads) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    batches.close()
    assert threading.main_thread().name not in threads


def test_an_error_of_the_data_reaches_the_caller(tiny_model: Clippo):
    def failing() -> Iterator[tuple[int, bytes]]:
        yield from enumerate(PICTURES[:4])
        raise FileNotFoundError("the shard is gone")

    batches = decoded_batches(tiny_model, failing(), batch_size=4)
    assert next(batches).names == [0, 1, 2, 3]
    with pytest.raises(FileNotFoundError, match="the shard is gone"):
        next(batches)


def test_what_pillow_warns_of_is_silent_in_all_threads_and_other_warnings_are_not(
    tiny_model: Clippo,
):
    """Warnings are errors here; a picture of 90 to 179 million pixels is one of Pillow's."""
    large = [png_that_claims(10_000, 10_000), PICTURES[0]] * 40
    found = encode_pictures(tiny_model, enumerate(large), batch_size=16)
    assert {problem.reason for _, problem in found.rejected} == {"too_many_pixels"}
    assert found.names == list(range(1, 80, 2))
    with pytest.raises(UserWarning, match="of our own"):
        warnings.warn("of our own", stacklevel=1)
