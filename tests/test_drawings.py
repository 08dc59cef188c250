"""The drawings in notebooks/media: what their script writes, readable by all, true to flowlib."""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from flowlib import masks, models
from flowlib.bijections import Squeeze
from flowlib.coupling import AffineCoupling

MEDIA = Path(__file__).resolve().parents[1] / "notebooks" / "media"
SCRIPT = runpy.run_path(str(MEDIA / "drawings.py"))
FILES = sorted(MEDIA.glob("*.svg"))


def test_the_files_are_what_the_script_writes(tmp_path):
    SCRIPT["write"](tmp_path)
    assert [path.name for path in FILES] == sorted(path.name for path in tmp_path.iterdir())
    for path in FILES:
        written = (tmp_path / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == written, (
            "run: python notebooks/media/drawings.py"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_drawing_can_be_read_by_everybody(path):
    text = path.read_text(encoding="utf-8")
    root = ET.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert root.findtext(f"{svg}title") and len(root.findtext(f"{svg}desc")) >= 100
    assert "@media (prefers-color-scheme: dark)" in root.findtext(f"{svg}style")
    sizes = [float(size) for size in re.findall(r"font(?:-size)?:([\d.]+)px", text)]
    assert min(sizes) >= 12
    assert path.stat().st_size < 20_000
    assert 640 <= int(root.get("width")) <= 760 and root.get("viewBox").startswith("0 0 ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_drawn_beyond_the_edge(path):
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    width, height = int(root.get("width")), int(root.get("height"))
    for shape in root.iter():
        tag, get = shape.tag.split("}")[1], lambda name, shape=shape: float(shape.get(name))
        if tag == "rect":
            corners = [get("x"), get("x") + get("width")] if shape.get("x") else []
            assert all(4 <= x <= width - 4 for x in corners)
        elif tag == "path":
            points = re.findall(r"([\d.-]+),([\d.-]+)", shape.get("d"))
            assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)
        elif tag == "text":
            assert 0 <= get("x") <= width and 10 <= get("y") <= height - 4


@pytest.mark.parametrize("order", ["channel", "checkerboard"])
def test_the_numbers_in_the_squeeze_are_those_of_flowlib(order):
    z, _ = Squeeze(order)(torch.arange(16.0).view(1, 1, 4, 4))
    assert SCRIPT["squeezed"](order) == z[0].int().tolist()


def test_the_light_fields_are_those_that_a_checkerboard_passes():
    even = SCRIPT["even"]
    board = [[even(i, j) for j in range(4)] for i in range(4)]
    assert board == masks.checkerboard(4, 4).tolist()


def test_the_two_directions_are_inverse_and_their_patch_is_a_coupling():
    points = [(-1.5, 0.7), (0.0, 0.0), (1.2, -0.4)]
    for x in points:
        assert SCRIPT["to_data"](*SCRIPT["to_latent"](*x)) == pytest.approx(x)
        assert SCRIPT["to_latent"](*x)[0] == x[0]


def test_factoring_out_is_drawn_with_flowlibs_shapes_and_layers():
    flow = models.realnvp_image((3, 32, 32), scales=3, width=2, blocks=1)
    multi = flow.bijection[-1]
    text = (MEDIA / "factor_out.svg").read_text(encoding="utf-8")
    for C, H, W in multi.shapes:
        assert f"{C} × {H} × {W}" in text
    assert [shape.numel() for shape in multi.shapes] == [1536, 768, 768]
    for scale, names in zip(multi.scales, [["board"] * 3 + ["channels"] * 3] * 2 + [["board"] * 4]):
        couplings = [layer for layer in scale if isinstance(layer, AffineCoupling)]
        assert ["board" if c.checkerboard else "channels" for c in couplings] == names
