"""Decoding of pictures onto the canvas; a `Rejected` value stands for an undecodable one."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected
from clippo_core.resizing import resize_antialiased, resize_bilinear

#: Formats that are decoded. Others are left out on purpose: they call other programs (EPS), or no
#: image set uses them.
DECODED_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO")
_DECODE_FAILURES = (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError)
_BACKGROUND_OF_TRANSPARENT = (255, 255, 255)
#: The entry of `warnings.filters` that silences the modules of Pillow.
_SILENT_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode_image(
    encoded: bytes | None, config: ImageConfig, *, image_size_px: int
) -> UInt8[np.ndarray, "height_px width_px 3"] | Rejected:
    """Return an encoded picture as pixels on the canvas, or why it cannot be decoded.

    The picture is upright (EXIF orientation applied), the first frame of an animation, with white
    behind transparent parts; CMYK, palette, grey and 16-bit pictures become RGB of 8 bits.

    Args:
        encoded: the file's content.
        config: settings of the resizing, and the most pixels to decode.
        image_size_px: side of the square canvas; the aspect ratio is not kept, as in the paper.
    """

    def fit(image: Image.Image) -> UInt8[np.ndarray, "height_px width_px 3"]:
        if config.resize == "scaled_decode":
            # JPEG alone knows this; other formats pass over it.
            image.draft(None, (image_size_px, image_size_px))
        return fit_image(image, config, image_size_px=image_size_px)

    return _guarded(encoded, config, fit)


def decode_thumbnail(
    encoded: bytes | None, config: ImageConfig, *, max_side_px: int
) -> UInt8[np.ndarray, "height_px width_px 3"] | Rejected:
    """Return a picture for people to look at: as `decode_image` does, in its aspect ratio.

    Args:
        encoded: the file's content.
        config: the most pixels to decode.
        max_side_px: longest side of the result; smaller pictures stay as they are.
    """

    def shrink(image: Image.Image) -> UInt8[np.ndarray, "height_px width_px 3"]:
        # JPEG can be decoded at a fraction of its size; twice what is wanted leaves a margin.
        image.draft(None, (2 * max_side_px, 2 * max_side_px))
        shown = _as_shown(image)
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
            image = Image.open(io.BytesIO(encoded), formats=_known_formats())
            if image.width * image.height > config.max_pixels:
                return Rejected("too_many_pixels", f"{image.width}x{image.height}")
            return decode(image)
    except Image.DecompressionBombError as error:
        return Rejected("too_many_pixels", str(error))
    except UnidentifiedImageError:
        return Rejected("unknown_image_format", f"starts with {encoded[:8]!r}")
    except _DECODE_FAILURES as error:
        return Rejected("corrupt_image", f"{type(error).__name__}: {error}")


def _silence_pillow() -> None:
    """Ignore Pillow's warnings: bombs are counted here, oddities are decoded all the same.

    `catch_warnings` will not do: it puts back the filters of the whole process, so that the first
    of several threads to end brings the warnings back for the others.
    """
    if list(warnings.filters[:1]) != [_SILENT_PILLOW]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def fit_image(
    image: Image.Image | UInt8[np.ndarray, "height_px width_px 3"],
    config: ImageConfig,
    *,
    image_size_px: int,
) -> UInt8[np.ndarray, "canvas_px canvas_px 3"]:
    """Return a picture on the square canvas, resized as `config.resize` names."""
    pixels = np.asarray(_as_shown(image) if isinstance(image, Image.Image) else image)
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


def _as_shown(image: Image.Image) -> Image.Image:
    """Return the first frame, upright, as RGB or grey levels; see `decode_image`."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, _BACKGROUND_OF_TRANSPARENT)
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    # `convert` copies, needed or not.
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale grey levels of more than 8 bits to 0..255; Pillow's own conversion clips them."""
    levels = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        # Float pictures hold 0..1 or 0..255; nothing in the file says which.
        levels = levels * 255 if levels.max(initial=0) <= 1 else levels
    elif image.mode.startswith("I;16") or levels.max(initial=0) > 255:
        levels = levels / 257
    return Image.fromarray(np.clip(np.round(levels), 0, 255).astype(np.uint8))


def _known_formats() -> list[str]:
    """Return those of `DECODED_FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in DECODED_FORMATS if name in Image.OPEN]
