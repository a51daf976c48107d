"""Text to pixels, exactly as CLIPPO's authors draw it: GNU Unifont, 16 px rows, proportional.

`TextRenderer` turns texts into `TextRasters`, a compact form that becomes pixels on any device.
"""

from clippo_core.config import RenderConfig
from clippo_core.rendering.raster import TextRasters
from clippo_core.rendering.renderer import TextRenderer
from clippo_core.rendering.unifont import GlyphTable, load_font

__all__ = ["GlyphTable", "RenderConfig", "TextRasters", "TextRenderer", "load_font"]
