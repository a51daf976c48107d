"""Maker of the bundled font's file from Unifont's own: `make_glyphs UNIFONT_ALL.hex`."""

from __future__ import annotations

import sys

from clippo_core.rendering.unifont import BUNDLED_FONT, load_font


def main(source: str) -> None:
    """Convert a `.hex` or `.hex.gz` file to the compact form, in the bundled font's place."""
    font = load_font(source)
    content = font.to_bytes()
    BUNDLED_FONT.write_bytes(content)
    glyphs = len(font.codepoints)
    sys.stdout.write(f"{glyphs} glyphs, {len(content)} bytes, sha256 {font.sha256}\n")


if __name__ == "__main__":
    main(sys.argv[1])
