"""Every slider of every notebook, moved by keyboard and by mouse; screenshots in runs/browser."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "runs" / "browser"
WIDTHS = [1280, 720]  # a laptop's screen, and half of it


def shown(path):
    """How many explorers a notebook shows: cells that end with the name of one."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return sum(
        re.fullmatch(r"explorer\w*", cell.source.splitlines()[-1]) is not None for cell in cells
    )


NOTEBOOKS = [path.name for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")) if shown(path)]
VALUES = """[[c.value for c in w.controls.values() if hasattr(c, 'readout')]
 for w in list(__import__('ipywidgets').widgets.widget._instances.values())
 if type(w).__name__ == 'Explorer']"""


def number(text):
    return float(text.replace("−", "-"))


def press_one_step(page, explorer, slider):
    """One press of an arrow key must change the picture."""
    picture, handle = explorer.locator("img"), slider.locator(".noUi-handle")
    before = picture.get_attribute("src")
    at_end = float(handle.get_attribute("aria-valuenow")) >= float(
        handle.get_attribute("aria-valuemax")
    )
    handle.focus()
    page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
    wait_for_another_picture(explorer, before)


def drag(page, explorer, slider):
    """Drag from where the handle is to a quarter, or three quarters, of the track."""
    before = explorer.locator("img").get_attribute("src")
    slider.scroll_into_view_if_needed()
    handle, track = (
        slider.locator(".noUi-handle").bounding_box(),
        slider.locator(".noUi-target").bounding_box(),
    )
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    far = 0.75 if x < track["x"] + track["width"] / 2 else 0.25
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(track["x"] + far * track["width"], y, steps=20)
    page.mouse.up()
    wait_for_another_picture(explorer, before)


def wait_for_another_picture(explorer, before):
    from playwright.sync_api import expect

    expect(explorer.locator("img")).not_to_have_attribute("src", before, timeout=15_000)


def assert_nothing_is_cut_off(explorer):
    cut = explorer.evaluate(
        """box => [...box.querySelectorAll(
          '.widget-label, .widget-readout, .widget-gridbox, .widget-html-content')]
        .filter(e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 3)
        .map(e => e.className + ': ' + e.textContent)"""
    )
    assert cut == []
    picture, box, panel = (
        explorer.locator("img").bounding_box(),
        explorer.bounding_box(),
        explorer.page.viewport_size,
    )
    assert picture["x"] + picture["width"] <= min(box["x"] + box["width"], panel["width"]) + 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_slider_moves_its_picture(lab, name):
    page = lab.page
    lab.run(name)
    explorers = page.locator(".flowlib-explorer")
    assert explorers.count() == shown(ROOT / "notebooks" / name)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for i in range(explorers.count()):
        explorer = explorers.nth(i)
        explorer.scroll_into_view_if_needed()
        sliders = explorer.locator(".widget-slider")
        for j in range(sliders.count()):
            press_one_step(page, explorer, sliders.nth(j))
            drag(page, explorer, sliders.nth(j))
            assert lab.errors() == []
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            explorer.scroll_into_view_if_needed()
            assert_nothing_is_cut_off(explorer)
            page.screenshot(path=SCREENSHOTS / f"{name[:2]}_{i + 1}_{width}.png")
            explorer.screenshot(path=SCREENSHOTS / f"{name[:2]}_{i + 1}_{width}_explorer.png")
        page.set_viewport_size({"width": WIDTHS[0], "height": 800})
    in_kernel = [
        [round(float(value), 2) for value in values] for values in ast.literal_eval(lab.ask(VALUES))
    ]
    for i in range(explorers.count()):  # the last event of every drag has arrived
        assert [
            number(text) for text in explorers.nth(i).locator(".widget-readout").all_inner_texts()
        ] in in_kernel
    assert lab.errors() == []


SLOW = """
import time
from matplotlib.figure import Figure
from flowlib.widgets.explorer import Explorer, slider
seen = []
def update(v):
    seen.append(v); time.sleep(0.1)
    return {}, f"{v}"
w = Explorer({"v": slider("v", 0, 0, 100, 1)}, Figure(figsize=(2, 1)), [], update)
w
"""


def test_stale_events_of_a_dragged_slider_are_dropped(lab, server):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SLOW.strip())])
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(notebook, server[2] / "slow.ipynb")
    lab.run("slow.ipynb")
    page, slider = lab.page, lab.page.locator(".widget-slider")
    handle, track = (
        slider.locator(".noUi-handle").bounding_box(),
        slider.locator(".noUi-target").bounding_box(),
    )
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(60):
        page.mouse.move(x + (i + 1) / 60 * 0.9 * track["width"], y)
    page.mouse.up()
    last = slider.locator(".widget-readout").inner_text()
    page.wait_for_function(
        "text => document.querySelector('.flowlib-explorer .widget-html-content').textContent "
        "=== text",
        arg=last,
    )
    seen = ast.literal_eval(lab.ask("seen"))
    assert seen[-1] == int(last) > 50
    assert len(seen) < 30, f"60 moves of the mouse made {len(seen)} updates"
    assert lab.errors() == []
