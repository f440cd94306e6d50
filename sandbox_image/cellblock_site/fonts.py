"""Let matplotlib draw the scripts that a figure's font lacks.

The image adds calls of these functions to matplotlib's modules. Settings would not do: seaborn and many programs
replace them.
"""

import os
from typing import Any

_FOLDER = "/usr/share/fonts/truetype"
# In this order: Chinese, Japanese and Korean; Thai; Devanagari; emoji and symbols, in one colour.
_FILES = ("wqy/wqy-microhei.ttc", "tlwg/Loma.ttf", "lohit-devanagari/Lohit-Devanagari.ttf",
          "ancient-scripts/Symbola_hint.ttf")  # fmt: skip
FALLBACK = tuple(path for path in (os.path.join(_FOLDER, file) for file in _FILES) if os.path.exists(path))


def install_in_text(manager: Any, default: str) -> None:
    """Add the fallback fonts to what matplotlib's ``FontManager`` finds.

    Args:
        default: the path of DejaVu Sans, which has Hebrew and Arabic, unlike other fonts of matplotlib.
    """
    find = manager._find_fonts_by_props

    def find_with_fallback(self: Any, prop: Any, fontext: str = "ttf", *args: Any, **kwargs: Any) -> list[Any]:
        found = find(self, prop, fontext, *args, **kwargs)
        return [*found, *(path for path in (default, *FALLBACK) if path not in found)] if fontext == "ttf" else found

    manager._find_fonts_by_props = find_with_fallback


def install_in_mathtext(fonts: Any, get_font: Any) -> None:
    """Let ``UnicodeFonts``, which draws texts with formulas, take letters of other scripts from the fallback fonts."""
    find = fonts._get_glyph

    def get_glyph(self: Any, fontname: str, font_class: str, symbol: str) -> Any:
        if len(symbol) == 1 and _is_of_another_script(ord(symbol)):
            for font in (self._get_font("rm"), *map(get_font, FALLBACK)):
                if font is not None and font.get_char_index(ord(symbol)):
                    return font, ord(symbol), False
        return find(self, fontname, font_class, symbol)

    fonts._get_glyph = get_glyph


def _is_of_another_script(code: int) -> bool:
    """Return whether a character is from Hebrew on in Unicode, and neither punctuation nor a symbol of mathematics."""
    return 0x590 <= code < 0x1E00 or (code >= 0x2E80 and not 0x1D400 <= code < 0x1D800)
