"""Decoding of pictures onto the canvas; a `Rejected` value stands for an undecodable one."""

from __future__ import annotations

import ctypes
import io
import logging
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected
from clippo_core.resizing import resize_antialiased, resize_bilinear

#: Formats that are decoded. Others are left out on purpose: they call other programs (EPS), or no
#: image set uses them.
DECODED_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO")
_BACKGROUND_OF_TRANSPARENT = (255, 255, 255)
#: The entry of `warnings.filters` that silences the modules of Pillow.
_SILENT_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
#: Bytes that Pillow takes for a pixel of a mode; 4 in all others, RGB among them.
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1} | dict.fromkeys(("I;16", "I;16L", "I;16B"), 2)
#: Bytes for each pixel that the libraries behind some formats hold besides.
_BYTES_OF_DECODER = {"AVIF": 4, "WEBP": 9, "TIFF": 1, "GIF": 1}
_BYTES_OF_PROGRESSIVE_JPEG = 3
#: Pixels that are turned into RGB at a time.
_STRIP_PIXELS = 2**18
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_image(
    encoded: bytes | None, config: ImageConfig, *, image_size_px: int
) -> UInt8[np.ndarray, "height_px width_px 3"] | Rejected:
    """Return an encoded picture as pixels on the canvas, or why it cannot be decoded.

    The picture is upright (EXIF orientation applied), the first frame of an animation, with white
    behind transparent parts; CMYK, palette, grey and 16-bit pictures become RGB of 8 bits.

    Args:
        encoded: the file's content.
        config: settings of the resizing, and the most pixels and bytes to decode.
        image_size_px: side of the square canvas; the aspect ratio is not kept, as in the paper.
    """

    def fit(image: Image.Image) -> UInt8[np.ndarray, "height_px width_px 3"]:
        if config.resize == "scaled_decode":
            # JPEG alone knows this; other formats pass over it.
            image.draft(None, (image_size_px, image_size_px))
        _require_budget(image, config)
        return fit_image(image, config, image_size_px=image_size_px)

    return _guarded(encoded, config, fit)


def picture_size(encoded: bytes | None) -> tuple[int, int] | None:
    """Return width and height of a picture by its header; None where that cannot be read."""
    if not encoded:
        return None
    _silence_pillow()
    try:
        return _opened(encoded).size
    except Exception:  # noqa: BLE001 - as in `_guarded`
        return None


def decode_thumbnail(
    encoded: bytes | None, config: ImageConfig, *, max_side_px: int
) -> UInt8[np.ndarray, "height_px width_px 3"] | Rejected:
    """Return a picture for people to look at: as `decode_image` does, in its aspect ratio.

    Args:
        encoded: the file's content.
        config: the most pixels and bytes to decode.
        max_side_px: longest side of the result; smaller pictures stay as they are.
    """

    def shrink(image: Image.Image) -> UInt8[np.ndarray, "height_px width_px 3"]:
        # JPEG can be decoded at a fraction of its size; twice what is wanted leaves a margin.
        image.draft(None, (2 * max_side_px, 2 * max_side_px))
        _require_budget(image, config)
        pixels = _as_shown(image)
        # What is far larger is thinned out first, which people do not see and memory feels.
        step = max(max(pixels.shape[:2]) // (4 * max_side_px), 1)
        shown = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
        shown.thumbnail((max_side_px, max_side_px), Image.Resampling.BILINEAR)
        return _in_rgb(np.asarray(shown))

    return _guarded(encoded, config, shrink)


def _guarded(
    encoded: bytes | None,
    config: ImageConfig,
    decode: Callable[[Image.Image], UInt8[np.ndarray, "height_px width_px 3"]],
) -> UInt8[np.ndarray, "height_px width_px 3"] | Rejected:
    """Open and decode a picture; return why that cannot be done where it cannot."""
    if not encoded:
        return Rejected("missing_image", "no bytes")
    _silence_pillow()
    try:
        # A picture of floats may hold NaN.
        with np.errstate(all="ignore"):
            image = _opened(encoded)
            if image.width * image.height > config.max_pixels:
                return Rejected("too_many_pixels", f"{image.width}x{image.height}")
            return decode(image)
    except (Image.DecompressionBombError, _TooLargeError) as error:
        return Rejected("too_many_pixels", str(error))
    except UnidentifiedImageError:
        return Rejected("unknown_image_format", f"starts with {encoded[:8]!r}")
    # Decoders raise whatever their library does, RuntimeError for one, and no list of it is whole.
    except Exception as error:  # noqa: BLE001
        return Rejected("corrupt_image", f"{type(error).__name__}: {error}")


class _TooLargeError(Exception):
    """Raised when a picture takes more memory than a config allows."""


def _opened(encoded: bytes) -> Image.Image:
    """Open a picture. A PNG whose notes are longer than Pillow reads is opened without them."""
    formats = _known_formats()
    try:
        return Image.open(io.BytesIO(encoded), formats=formats)
    except ValueError:
        if not encoded.startswith(_PNG_SIGNATURE):
            raise
        return Image.open(io.BytesIO(_without_texts(encoded)), formats=formats)


def _without_texts(png: bytes) -> bytes:
    """Return a PNG file without its chunks of text."""
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        end = at + 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _require_budget(image: Image.Image, config: ImageConfig) -> None:
    """Make sure that a picture that is not decoded yet will take no more than the config allows."""
    is_grey = image.mode in ("L", "I", "F") or image.mode.startswith("I;16")
    per_pixel = _BYTES_PER_PIXEL.get(image.mode, 4) + (4 if is_grey else 3)
    per_pixel += _BYTES_OF_DECODER.get(image.format or "", 0)
    if image.info.get("progressive"):
        per_pixel += _BYTES_OF_PROGRESSIVE_JPEG
    needed_mb = image.width * image.height * per_pixel / 1e6
    if needed_mb > config.max_decoded_mb:
        raise _TooLargeError(
            f"{image.width}x{image.height} {image.mode} takes {needed_mb:.0f} MB to decode; "
            f"max_decoded_mb is {config.max_decoded_mb}"
        )


def _silence_pillow() -> None:
    """Ignore Pillow's warnings: bombs are counted here, oddities are decoded all the same.

    `catch_warnings` will not do: it puts back the filters of the whole process, so that the first
    of several threads to end brings the warnings back for the others.
    """
    if list(warnings.filters[:1]) != [_SILENT_PILLOW]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    _silence_tiff()


@cache
def _silence_tiff() -> None:
    """Keep TIFF readers from writing a line to stderr for each damaged file: it is a reject."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL + 1)
    libraries = Path(Image.__file__).parents[1] / "pillow.libs"
    for file in [*libraries.glob("libtiff*.so*"), *libraries.glob("libtiff*.dylib")]:
        library = ctypes.CDLL(str(file))
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


def fit_image(
    image: Image.Image | UInt8[np.ndarray, "height_px width_px 3"],
    config: ImageConfig,
    *,
    image_size_px: int,
) -> UInt8[np.ndarray, "canvas_px canvas_px 3"]:
    """Return a picture on the square canvas, resized as `config.resize` names."""
    pixels = _as_shown(image) if isinstance(image, Image.Image) else np.asarray(image)
    if config.resize == "bilinear":
        return resize_bilinear(_in_rgb(pixels), image_size_px=image_size_px)
    if pixels.shape[:2] != (image_size_px, image_size_px):
        pixels = resize_antialiased(pixels, image_size_px=image_size_px)
    return _in_rgb(pixels)


def _in_rgb(
    pixels: UInt8[np.ndarray, "height_px width_px *channel"],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    if pixels.ndim == 3:
        return pixels
    rgb = np.empty((*pixels.shape, 3), np.uint8)
    # Channel by channel: numpy takes longer to repeat each pixel.
    for channel in range(3):
        rgb[..., channel] = pixels
    return rgb


def _as_shown(image: Image.Image) -> UInt8[np.ndarray, "height_px width_px *channel"]:
    """Return the first frame, upright, as RGB or grey levels; see `decode_image`.

    It is turned into RGB strip by strip, so that no copies of the whole are held.
    """
    to_8_bit = _scaling_to_8_bit(image)
    rows = max(_STRIP_PIXELS // max(image.width, 1), 1)
    shown: UInt8[np.ndarray, "height_px width_px *channel"] | None = None
    for top, strip in _strips(image, rows):
        pixels = np.asarray(_opaque(strip if to_8_bit is None else to_8_bit(strip)))
        if pixels.shape[0] == image.height:
            shown = pixels
            break
        if shown is None:
            shown = np.empty((image.height, *pixels.shape[1:]), np.uint8)
        shown[top : top + len(pixels)] = pixels
    assert shown is not None, "a picture has rows"
    return _upright(shown, _orientation(image))


def _strips(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield the top and the content of strips of a picture; a small one is a single strip."""
    if image.height <= rows:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, image.crop((0, top, image.width, bottom))


def _opaque(image: Image.Image) -> Image.Image:
    """Return a picture in RGB or grey levels, on white."""
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, _BACKGROUND_OF_TRANSPARENT)
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    # `convert` copies, needed or not.
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _scaling_to_8_bit(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """Return what scales grey levels of more than 8 bits to 0..255; None if there are none.

    Pillow's own conversion clips them. Pictures of floats hold 0..1 or 0..255, and those of 32 bits
    levels of 8 or of 16 bits; nothing in the file says which, so that the highest level decides.
    """
    if not image.mode.startswith(("I", "F")):
        return None
    if image.mode.startswith("I;16"):
        factor, divisor = 1, 257
    else:
        highest = cast("float", image.getextrema()[1])
        factor = 255 if image.mode == "F" and highest <= 1 else 1
        divisor = 257 if image.mode == "I" and highest > 255 else 1

    def to_8_bit(strip: Image.Image) -> Image.Image:
        levels = np.asarray(strip).astype(np.float64) * factor / divisor
        return Image.fromarray(np.clip(np.round(levels), 0, 255).astype(np.uint8))

    return to_8_bit


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; damaged EXIF says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    # Pillow's parser raises whatever the bytes lead it to.
    except Exception:  # noqa: BLE001
        return 1


def _upright(
    pixels: UInt8[np.ndarray, "height_px width_px *channel"], orientation: int
) -> UInt8[np.ndarray, "shown_height_px shown_width_px *channel"]:
    """Return a picture turned, or mirrored, as its EXIF orientation says."""
    if orientation in (5, 7):
        pixels = pixels.swapaxes(0, 1)
    turns = {3: 2, 6: 3, 7: 2, 8: 1}.get(orientation, 0)
    pixels = np.rot90(pixels, turns) if turns else pixels
    if orientation == 2:
        return pixels[:, ::-1]
    return pixels[::-1] if orientation == 4 else pixels


def _known_formats() -> list[str]:
    """Return those of `DECODED_FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in DECODED_FORMATS if name in Image.OPEN]
