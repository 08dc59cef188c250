"""Equations as MathML, which browsers draw without a script, and their font, STIX Two Math."""

import re
import unicodedata
from contextlib import suppress
from pathlib import Path

import ziamath
from fontTools import subset
from latex2mathml import converter

LETTERS = re.compile(r'<mi mathvariant="(script|double-struck|bold)">(\w)</mi>')
NONE, THIN = 'lspace="0" rspace="0"', 'form="prefix" lspace=".17em" rspace=".17em"'
SPACES = {  # as LaTeX sets them
    r'<mo(?: stretchy="false")?>(?=&#x(0007C|02016|0002F|02026);)': f'<mo stretchy="false" {NONE}>',
    r"<mi>&#x0007E;</mi>": '<mo lspace=".28em" rspace=".28em">∼</mo>',
    r"(^<math[^>]*>|<mrow>|<mtd>|<mo[^>]*>(?!&#x0*(29|5D|7D|7C);)[^<]*</mo>)<mo>(?=&#x02212;)": (
        r'\1<mo form="prefix">'
    ),
    r"<mi>(log|exp|sin|cos|tanh|arctan)</mi>(?!<mo)": rf"<mo {THIN}>\1</mo>",
    r"</mi><mi>(log|exp|sin|cos|tanh|arctan)</mi>": (
        r'</mi><mo form="prefix" lspace=".17em" rspace="0">\1</mo>'
    ),
    rf"(</mo>|<mrow>)<mo {THIN}": r'\1<mo form="prefix" lspace="0" rspace=".17em"',
    r'<mo movablelimits="true">det': '<mo movablelimits="true" lspace="0" rspace=".17em">det',
}


def mathml(latex: str, display: str) -> str:
    """An equation, `display` is "inline" or "block". Raises ValueError for unknown LaTeX."""
    source = latex.replace("{aligned}", "{split}")
    markup = converter.convert(source, display=display).replace(r"\_", "_")
    if "\\" in markup or "<mi>&</mi>" in markup:
        raise ValueError(f"no MathML for {latex}")
    markup = LETTERS.sub(letter, markup)
    for pattern, replacement in SPACES.items():
        markup = re.sub(pattern, replacement, markup)
    return markup


def letter(match):
    """Letters of other alphabets are characters of their own in today's MathML."""
    style = match[1].upper()
    name = re.sub("LATIN|LETTER ", "", unicodedata.name(match[2]))
    for prefix in ("MATHEMATICAL ", ""):
        with suppress(KeyError):
            return f"<mi>{unicodedata.lookup(prefix + style + name)}</mi>"
    return match[0]


def save_font(path: Path) -> None:
    """The font's letters, operators and stretched brackets, for the web."""
    options = subset.Options(flavor="woff", layout_features=["ssty"])
    whole = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    font = subset.load_font(whole, options)
    blocks = [(0x20, 0x3FF), (0x2000, 0x23FF), (0x25A0, 0x2AFF), (0x1D400, 0x1D7FF)]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[c for first, last in blocks for c in range(first, last + 1)])
    subsetter.subset(font)
    subset.save_font(font, path, options)
