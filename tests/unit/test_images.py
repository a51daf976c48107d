from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected
from clippo_core.images import decode_image, fit_image
from tests.benchmarks.photographs import encode, rough

CONFIG = ImageConfig()
SIZE = 32


def decode(encoded: bytes | None, config: ImageConfig = CONFIG) -> np.ndarray | Rejected:
    return decode_image(encoded, config, image_size_px=SIZE)


def flat(mode: str, colour, size=(8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (flat("RGB", (10, 20, 30)), "PNG", (10, 20, 30)),
        (flat("L", 77), "PNG", (77, 77, 77)),
        (flat("1", 1), "PNG", (255, 255, 255)),
        (flat("RGBA", (10, 20, 30, 255)), "PNG", (10, 20, 30)),
        (flat("RGBA", (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (flat("LA", (0, 0)), "PNG", (255, 255, 255)),
        (flat("RGB", (10, 20, 30)).quantize(), "PNG", (10, 20, 30)),
        (flat("CMYK", (255, 255, 0, 0)), "TIFF", (0, 0, 255)),
        (flat("I;16", 0x8080), "PNG", (128, 128, 128)),
        (flat("I", 300), "TIFF", (1, 1, 1)),
        (flat("F", 0.5), "TIFF", (128, 128, 128)),
        (flat("F", 200.0), "TIFF", (200, 200, 200)),
        (flat("RGB", (10, 20, 30)), "WEBP", (10, 20, 30)),
        (flat("RGB", (10, 20, 30)), "BMP", (10, 20, 30)),
        (flat("L", 9), "GIF", (9, 9, 9)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_each_kind_of_picture_has_the_colour_a_person_sees(image, kind: str, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encode(image, kind, **options))
    assert isinstance(pixels, np.ndarray), pixels
    assert pixels.shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(pixels[3, 3].astype(int), expected, atol=1)


def test_a_palette_with_transparency_lies_on_white():
    image = flat("P", 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    pixels = decode(encode(image, transparency=0))
    assert isinstance(pixels, np.ndarray)
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_counts():
    frames = [flat("RGB", (200, 0, 0)), flat("RGB", (0, 200, 0))]
    pixels = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert isinstance(pixels, np.ndarray)
    assert pixels[0, 0].tolist() == [200, 0, 0]


def test_a_picture_stands_upright():
    half = Image.new("RGB", (8, 8), "black")
    half.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half a turn
    pixels = decode(encode(half, "JPEG", exif=exif, quality=100))
    assert isinstance(pixels, np.ndarray)
    assert pixels[-1].mean() > 240
    assert pixels[0].mean() < 15


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (None, "missing_image"),
        (b"", "missing_image"),
        (b"not a picture at all", "unknown_image_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unknown_image_format"),
        (encode(flat("RGB", (1, 2, 3), (64, 64)), "JPEG")[:200], "corrupt_image"),
        (encode(Image.effect_noise((64, 64), 90))[:900], "corrupt_image"),
    ],
)
def test_what_cannot_be_decoded_is_a_value_with_its_reason(encoded, reason: str):
    outcome = decode(encoded)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    outcome = decode(png_that_claims(60_000, 60_000))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "too_many_pixels"


def test_the_limit_of_pixels_is_a_setting():
    outcome = decode(encode(flat("RGB", 0)), ImageConfig(max_pixels=63))
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.detail) == ("too_many_pixels", "8x8")


def test_a_picture_that_takes_much_memory_is_refused_before_it_is_decoded():
    encoded = encode(flat("I;16", 0, (1200, 1000)))
    outcome = decode(encoded, ImageConfig(max_decoded_mb=7))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "too_many_pixels"
    assert outcome.detail == "1200x1000 I;16 takes 7 MB to decode; max_decoded_mb is 7"
    assert isinstance(decode(encoded, ImageConfig(max_decoded_mb=8)), np.ndarray)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_a_large_picture_is_decoded_in_no_more_memory_than_is_counted(mode: str):
    """Of 12 million pixels: what Pillow holds cannot be counted here, the rest can."""
    encoded = encode(flat(mode, 0, (4000, 3000)))
    decode(encode(flat(mode, 0)))
    tracemalloc.start()
    decode(encoded, ImageConfig(resize="bilinear_antialias"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    in_numpy = 1 if mode in ("L", "I;16") else 3
    assert peak < in_numpy * 12e6 + 8e6


def test_a_strip_of_a_picture_is_turned_into_what_the_whole_is(monkeypatch: pytest.MonkeyPatch):
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 4), np.uint8)
    pictures = [
        *(Image.fromarray(noise).convert(mode) for mode in ("RGBA", "LA", "L", "P", "CMYK")),
        Image.fromarray(noise.view(np.uint16)[..., 0]),
        Image.fromarray(noise.view(np.int32)[..., 0] % 70_000),
        Image.fromarray((noise[..., 0] / 300).astype(np.float32)),
    ]
    whole = [fit_image(picture, CONFIG, image_size_px=SIZE) for picture in pictures]
    monkeypatch.setattr("clippo_core.images._STRIP_PIXELS", 350)
    for picture, expected in zip(pictures, whole, strict=True):
        found = fit_image(picture, CONFIG, image_size_px=SIZE)
        np.testing.assert_array_equal(found, expected, err_msg=picture.mode)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_each_orientation_is_what_pillow_makes_of_it(orientation: int):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(noise, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    found = decode(encoded)
    np.testing.assert_array_equal(found, fit_image(upright, CONFIG, image_size_px=SIZE))


def test_any_exception_of_a_decoder_is_a_reject(monkeypatch: pytest.MonkeyPatch):
    def fail(*_args, **_more):
        raise RuntimeError("Failed to decode frame 0: Decoding of color planes failed")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    outcome = decode(encode(flat("RGB", 0)))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "corrupt_image"
    assert outcome.detail.startswith("RuntimeError: Failed to decode frame 0")


def test_long_notes_in_a_png_are_passed_over():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "a photo of a cat, " * 300_000, zip=True)
    picture = flat("RGB", (10, 20, 30))
    np.testing.assert_array_equal(decode(encode(picture, pnginfo=notes)), decode(encode(picture)))


def test_damaged_tiffs_write_nothing_to_stderr(capfd: pytest.CaptureFixture[str]):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    for compression in ("tiff_lzw", "tiff_deflate"):
        encoded = bytearray(encode(noise, "TIFF", compression=compression))
        encoded[20:60] = b"\xff" * 40
        assert isinstance(decode(bytes(encoded)), Rejected)
    assert capfd.readouterr().err == ""


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_never_raise(data):
    """Bytes of a good file, overwritten and cut anywhere."""
    kinds = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]
    encoded = bytearray(encode(flat("RGB", (9, 8, 7)), data.draw(st.sampled_from(kinds))))
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, len(encoded) - 1))
        encoded[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    outcome = decode(bytes(encoded[:cut]), ImageConfig(max_pixels=10_000))
    assert isinstance(outcome, Rejected) or outcome.shape == (SIZE, SIZE, 3)


def test_antialiased_shrinking_averages_where_plain_bilinear_samples():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 255
    smooth = fit_image(stripes, CONFIG, image_size_px=32)
    plain = fit_image(stripes, ImageConfig(resize="bilinear"), image_size_px=32)
    assert abs(smooth.mean() - stripes.mean()) < 2
    assert abs(plain.mean() - stripes.mean()) > 10


@pytest.mark.parametrize(
    "size", [(480, 640), (100, 30), (640, 223), (1, 1), (224, 224), (3, 700), (224, 500)]
)
def test_antialiased_resizing_is_pillows_but_for_the_order_of_rounding(size: tuple[int, int]):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = Image.fromarray(noise).resize((224, 224), Image.Resampling.BILINEAR)
    ours = fit_image(noise, ImageConfig(resize="bilinear_antialias"), image_size_px=224)
    difference = np.abs(ours.astype(int) - np.asarray(expected))
    assert difference.max() <= 1
    assert difference.mean() < 0.3


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_antialias"])
@pytest.mark.parametrize("size", [(28, 28), (100, 30), (64, 64), (640, 223)])
def test_a_grey_picture_becomes_what_the_same_one_in_rgb_does(size: tuple[int, int], resize):
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    grey = Image.fromarray(noise)
    fitted, expected = (
        fit_image(image, ImageConfig(resize=resize), image_size_px=64)
        for image in (grey, grey.convert("RGB"))
    )
    np.testing.assert_array_equal(fitted, expected)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decoded_at_a_part_of_its_size_is_off_by_less_than_a_grey_level(mode, subsampling):
    encoded = encode(rough(640, 480).convert(mode), "JPEG", quality=90, subsampling=subsampling)
    scaled, whole = (
        decode_image(encoded, ImageConfig(resize=resize), image_size_px=224)
        for resize in ("scaled_decode", "bilinear_antialias")
    )
    assert isinstance(scaled, np.ndarray)
    assert isinstance(whole, np.ndarray)
    assert np.abs(scaled.astype(int) - whole).mean() < 1
    assert not np.array_equal(scaled, whole), "it was decoded at full size"


def test_a_jpeg_smaller_than_the_canvas_is_decoded_whole():
    encoded = encode(rough(300, 250), "JPEG")
    scaled, whole = (
        decode_image(encoded, ImageConfig(resize=resize), image_size_px=224)
        for resize in ("scaled_decode", "bilinear_antialias")
    )
    np.testing.assert_array_equal(scaled, whole)
