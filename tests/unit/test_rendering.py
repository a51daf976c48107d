from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clippo_core.errors import ConfigError, RenderError
from clippo_core.rendering import RenderConfig, TextRasters, TextRenderer, load_font
from clippo_core.rendering.unifont import BUNDLED_FONT

ROOT = Path(__file__).parents[2]
SMALL = RenderConfig(image_size_px=64)


@pytest.fixture(scope="module")
def renderer() -> TextRenderer:
    return TextRenderer(SMALL)


def draw_slowly(text: str, config: RenderConfig) -> np.ndarray:
    """The rules, one glyph after the other, in float32 as the reference has it."""
    font = load_font(config.font)
    canvas = np.zeros((config.image_size_px, config.image_size_px), bool)
    glyphs = []
    for character in text[: config.max_chars]:
        lower = config.lowercase and "A" <= character <= "Z"
        code = ord(character.lower() if lower else character)
        code = 0xFFFD if 0xD800 <= code <= 0xDFFF else code
        columns = font.columns[font.index[code]]
        pixels = ((columns[None, :] >> np.arange(16)[:, None]) & 1).astype(bool)
        inked = np.flatnonzero(columns)
        first, last = (inked[0], inked[-1]) if len(inked) else (0, 0)
        start = max(first - config.spacing_px, 0)
        end = min(max(last + config.spacing_px, start + config.min_width_px), 16)
        glyphs.append(pixels if config.monospace else pixels[:, start:end])
    widths = np.array([glyph.shape[1] for glyph in glyphs], np.int64)
    usable = np.float32(config.image_size_px - widths.max(initial=0))
    rows = np.floor(np.cumsum(widths).astype(np.float32) / usable).astype(int)
    x, current = 0, 0
    for glyph, row in zip(glyphs, rows, strict=True):
        x = x if row == current else 0
        current = row
        if (row + 1) * 16 <= config.image_size_px:
            canvas[row * 16 : row * 16 + 16, x : x + glyph.shape[1]] = glyph
        x += glyph.shape[1]
    return np.where(canvas, np.uint8(config.ink), np.uint8(config.background))


configs = st.builds(
    RenderConfig,
    image_size_px=st.sampled_from([32, 64, 100, 224]),
    lowercase=st.booleans(),
    monospace=st.booleans(),
    spacing_px=st.integers(0, 5),
    min_width_px=st.integers(1, 16),
    max_chars=st.sampled_from([None, 1, 7, 768]),
    background=st.sampled_from([127, 255, 0]),
    ink=st.sampled_from([0, 255]),
)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec=None), max_size=120), config=configs)
def test_any_text_under_any_settings_equals_the_slow_drawing(text: str, config: RenderConfig):
    rasters = TextRenderer(config).render_batch([text])
    np.testing.assert_array_equal(rasters.to_pixels()[0], draw_slowly(text, config))


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=40), max_size=12))
def test_numpy_and_torch_expand_to_the_same_pixels(renderer, texts: list[str]):
    rasters = renderer.render_batch(texts)
    for height_px in (None, 24):
        expected = rasters.to_pixels(height_px=height_px)
        for expand in (rasters.to_tensor, rasters.expand_on):
            found = expand("cpu", height_px=height_px)
            np.testing.assert_array_equal(found.numpy(), expected)


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=10), data=st.data())
@settings(max_examples=50, deadline=None)
def test_taking_texts_equals_rendering_them(renderer, texts: list[str], data):
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=12))
    taken = renderer.render_batch(texts).take(np.array(chosen, np.int64))
    expected = renderer.render_batch([texts[i] for i in chosen])
    np.testing.assert_array_equal(taken.columns, expected.columns)
    np.testing.assert_array_equal(taken.row_offsets, expected.row_offsets)


def test_concatenated_rasters_equal_one_batch(renderer):
    parts = [renderer.render_batch(["a", ""]), renderer.render_batch(["many words in rows"])]
    joined = TextRasters.concatenate(parts)
    expected = renderer.render_batch(["a", "", "many words in rows"])
    np.testing.assert_array_equal(joined.to_pixels(), expected.to_pixels())


def test_rasters_of_different_settings_are_not_joined(renderer):
    other = TextRenderer(RenderConfig(image_size_px=64, monospace=True)).render_batch(["a"])
    with pytest.raises(RenderError, match="different settings"):
        TextRasters.concatenate([renderer.render_batch(["a"]), other])


def test_occupied_rows_reach_to_the_last_inked_row(renderer):
    rasters = renderer.render_batch(["", "   ", "a", "a " * 12, "x" + " " * 40 + "y"])
    pixels = rasters.to_pixels()
    for text, rows in enumerate(rasters.occupied_rows):
        inked = np.flatnonzero((pixels[text] == SMALL.ink).any(axis=1))
        assert rows == (0 if not len(inked) else inked[-1] // 16 + 1)


def test_bytes_that_are_not_utf8_become_replacement_characters(renderer):
    rendered = renderer.render(b"caf\xff")
    np.testing.assert_array_equal(rendered, renderer.render("caf�"))


def test_a_lone_surrogate_becomes_a_replacement_character(renderer):
    np.testing.assert_array_equal(renderer.render("\ud800"), renderer.render("�"))


def test_a_text_of_a_hundred_thousand_characters_is_cut_not_refused(renderer):
    np.testing.assert_array_equal(renderer.render("ab" * 50_000), renderer.render("ab" * 384))


def test_right_to_left_text_is_drawn_in_logical_order(renderer):
    whole, first = renderer.render("שלום"), renderer.render("ש")
    width = np.flatnonzero((first[:, :, 0] == 0).any(axis=0))[-1] + 1
    np.testing.assert_array_equal(whole[:, :width], first[:, :width])


NOT_TEXTS = """
from clippo_core.errors import RenderError
from clippo_core.rendering import TextRenderer
for bad in (None, 3, 1.5, ["nested"]):
    try:
        TextRenderer().render_batch(["fine", bad])
    except RenderError as error:
        print(error)
"""


def test_what_is_no_text_is_refused_by_position():
    """In a process of its own: here, the type checker of the tests would refuse it first."""
    done = subprocess.run(
        [sys.executable, "-c", NOT_TEXTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    kinds = ("NoneType", "int", "float", "list")
    assert lines == [f"text 1 is a {k}; expected str, or bytes in UTF-8" for k in kinds]


def test_a_single_string_is_no_batch(renderer):
    with pytest.raises(RenderError, match="list of texts"):
        renderer.render_batch("abc")


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size_px": 16},
        {"min_width_px": 0},
        {"min_width_px": 17},
        {"spacing_px": -1},
        {"background": 256},
        {"ink": -1},
        {"max_chars": 0},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RenderConfig(**wrong)


HEX = "0041:0000000018242442427E424242420000\n3042:" + "0" * 62 + "FF\n"


@pytest.mark.parametrize("suffix", [".hex", ".hex.gz"])
def test_another_font_is_used_and_named_by_its_hash(tmp_path, suffix: str):
    path = tmp_path / f"tiny{suffix}"
    path.write_bytes(gzip.compress(HEX.encode()) if suffix == ".hex.gz" else HEX.encode())
    config = RenderConfig(image_size_px=64, font=str(path), lowercase=False)
    renderer = TextRenderer(config)
    assert renderer.config.font_sha256 == renderer.font.sha256 != load_font().sha256
    bundled = TextRenderer(RenderConfig(image_size_px=64, lowercase=False))
    np.testing.assert_array_equal(renderer.render("A"), bundled.render("A"))
    assert renderer.render_batch(["B"]).occupied_rows[0] == 0


def test_a_config_made_with_another_font_is_refused(tmp_path):
    path = tmp_path / "tiny.hex"
    path.write_text(HEX)
    sha256 = load_font(str(path)).sha256
    with pytest.raises(RenderError, match="was made with font"):
        TextRenderer(RenderConfig(font_sha256=sha256))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no glyphs"),
        (b"0041:00\n", "is not a glyph"),
        (b"zz:" + b"0" * 32, "is not a glyph"),
        (b"110000:" + b"0" * 32, "is not a glyph"),
        (b"\xff\xfe", "damaged or no font"),
    ],
)
def test_a_damaged_font_is_refused_with_its_name(tmp_path, content: bytes, message: str):
    path = tmp_path / "bad.hex"
    path.write_bytes(content)
    with pytest.raises(RenderError, match=message) as caught:
        load_font(str(path))
    assert "bad.hex" in str(caught.value)


def test_a_missing_or_cut_font_file_is_refused(tmp_path):
    with pytest.raises(RenderError, match="cannot be read"):
        load_font(str(tmp_path / "none.hex"))
    cut = tmp_path / "cut.glyphs.xz"
    cut.write_bytes(BUNDLED_FONT.read_bytes()[:1000])
    with pytest.raises(RenderError, match="damaged"):
        load_font(str(cut))


def test_the_bundled_font_is_unifont_15_with_all_its_glyphs():
    font = load_font()
    assert len(font.codepoints) == 122_214
    assert font.codepoints[-1] == 0x0FFFFF


def test_a_renderer_is_cheap_to_send(renderer):
    packed = pickle.dumps(renderer.font)
    assert len(packed) < 200
    assert pickle.loads(packed).sha256 == renderer.font.sha256


def test_a_font_survives_its_compact_form(tmp_path):
    path = tmp_path / "tiny.hex"
    path.write_text(HEX)
    font = load_font(str(path))
    compact = tmp_path / "tiny.glyphs.xz"
    compact.write_bytes(font.to_bytes())
    assert load_font(str(compact)).sha256 == font.sha256
    assert pickle.loads(pickle.dumps(font)).sha256 == font.sha256


def test_a_caption_weighs_about_a_kilobyte():
    rasters = TextRenderer().render_batch(["a photo of a red car parked near the old town"])
    assert rasters.num_bytes < 1500


def test_rasters_that_do_not_fit_their_config_are_refused(renderer):
    rasters = renderer.render_batch(["abc"])
    with pytest.raises(RenderError, match="another canvas or cut short"):
        TextRasters(rasters.columns[:0], rasters.row_offsets, rasters.config)


def test_no_text_has_no_inked_patches():
    renderer = TextRenderer(RenderConfig(image_size_px=64))
    assert renderer.render_batch([]).inked_patches(16).shape == (0, 4, 4)
