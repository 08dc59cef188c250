"""Equations of the site as MathML; skipped where the site's packages are missing."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("ziamath")
pytest.importorskip("latex2mathml")
MATHML = runpy.run_path(Path(__file__).resolve().parents[1] / "site" / "equations.py")["mathml"]


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\mathcal N", "<mi>𝒩</mi>"),
        (r"\mathbb R", "<mi>ℝ</mi>"),  # not in its block, but older
        (r"\mathbf x", "<mi>𝐱</mi>"),
        (r"\log p", '<mo form="prefix" lspace="0" rspace=".17em">log</mo><mi>p</mi>'),
        (r"E[-s]", '<mo form="prefix">&#x02212;</mo>'),
        (r"a - b", "<mo>&#x02212;</mo>"),
        (r"\texttt{log\_det}", ">log_det</mtext>"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtr>"),
    ],
)
def test_letters_spaces_and_rows_are_as_latex_sets_them(latex, expected):
    assert expected in MATHML(latex, "inline")


@pytest.mark.parametrize("latex", [r"\unknowncommand x", r"\begin{unknown} a & b \end{unknown}"])
def test_what_has_no_mathml_is_refused(latex):
    with pytest.raises(ValueError, match="no MathML for"):
        MATHML(latex, "block")
