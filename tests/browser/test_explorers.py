"""Every slider of every notebook, by keyboard and by mouse; and what holds for all: names, keys
that stay with the controls, the layout, and the next day. Screenshots in runs/browser."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "runs" / "browser"
sys.path.insert(0, str(ROOT / "site"))
import slices  # noqa: E402


def shown(cells):
    """The cells that show an explorer, by their numbers: they end with its name."""
    return [i for i, source in cells.items() if source.splitlines()[-1].startswith("explorer")]


CODE = {
    path.name: {
        i: cell.source
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells)
        if cell.cell_type == "code"
    }
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
}
NOTEBOOKS = {name: shown(cells) for name, cells in CODE.items() if shown(cells)}
VALUES = """[w._values for w in list(__import__('ipywidgets').widgets.widget._instances.values())
 if type(w).__name__ == 'Explorer']"""
NAMELESS = """root => [...root.querySelectorAll('input, button, img, summary, fieldset')]
  .filter(e => e.checkVisibility())
  .filter(e => !(e.ariaLabel || e.alt || e.labels?.[0]?.innerText || e.innerText || '').trim())
  .map(e => e.outerHTML)"""


def expect(locator):
    from playwright.sync_api import expect  # which is not there where these tests are skipped

    return expect(locator)


def wait_for_another_picture(explorer, before):
    expect(explorer.locator("img")).not_to_have_attribute("src", before, timeout=15_000)


def press_one_step(page, explorer, slider):
    """One press of an arrow key must change the picture."""
    before = explorer.locator("img").get_attribute("src")
    at_end = slider.evaluate("s => s.valueAsNumber >= Number(s.max)")
    slider.focus()
    page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
    wait_for_another_picture(explorer, before)


def drag(page, explorer, slider):
    """Drag from one quarter of the track to the other."""
    before = explorer.locator("img").get_attribute("src")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    y, left, right = box["y"] + box["height"] / 2, box["x"] + box["width"] / 4, box["width"] / 2
    page.mouse.move(left, y)
    page.mouse.down()
    page.mouse.move(left + right, y, steps=20)
    page.mouse.up()
    wait_for_another_picture(explorer, before)


def assert_nothing_is_cut_off(explorer):
    outside = explorer.evaluate(
        """box => [...box.querySelectorAll('img, input, button, output, label, p')]
        .filter(e => e.checkVisibility())
        .filter(e => e.getBoundingClientRect().right > box.getBoundingClientRect().right + 1
          || e.scrollWidth > e.clientWidth + 1 && e.tagName !== 'INPUT')
        .map(e => e.outerHTML)"""
    )
    assert outside == []


def cells_to_run(name):
    """The cells that show an explorer, and those that must be run before."""
    numbers, sources = zip(*CODE[name].items())
    run = set()
    for end in NOTEBOOKS[name]:
        explorer = CODE[name][end].splitlines()[-1]
        run |= set(slices.needed_cells(sources[: numbers.index(end) + 1], explorer))
    return [numbers[i] for i in sorted(run)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_slider_moves_its_picture(lab, name):
    """Cells that no explorer needs are not run here; `make test` runs every cell."""
    page = lab.page
    lab.run(name, cells_to_run(name))
    explorers = page.locator(".flowlib-explorer")
    expect(explorers).to_have_count(len(NOTEBOOKS[name]))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for i in range(explorers.count()):
        explorer = explorers.nth(i)
        assert explorer.evaluate(NAMELESS) == []
        sliders = explorer.locator("input[type=range]")
        for j in range(sliders.count()):
            press_one_step(page, explorer, sliders.nth(j))
            drag(page, explorer, sliders.nth(j))
        assert lab.errors() == []
        assert_nothing_is_cut_off(explorer)
        explorer.scroll_into_view_if_needed()
        page.screenshot(path=SCREENSHOTS / f"{name[:2]}_{i + 1}.png")
        explorer.screenshot(path=SCREENSHOTS / f"{name[:2]}_{i + 1}_explorer.png")
    in_kernel = ast.literal_eval(lab.ask(VALUES))
    for i in range(explorers.count()):  # the last event of every drag has arrived
        on_page = explorers.nth(i).evaluate(
            "e => [...e.querySelectorAll('input[type=range]')].map(s => s.valueAsNumber)"
        )
        numbers = [[v for v in values.values() if not isinstance(v, str)] for values in in_kernel]
        assert on_page in [[pytest.approx(v) for v in row] for row in numbers]
    assert lab.errors() == []


# What holds for all explorers, on one page, in this order

CELLS = [
    """
from flowlib import checkpoints, data, widgets
layers = widgets.explore_layers(checkpoints.load("moons"), data.TwoMoons().sample(500, seed=0))
layers.ask("Before you move the slider: what will happen?", "This.")
layers
""",
    """
import torch
from flowlib import models
pixels = models.realnvp_image((1, 8, 8), scales=2, width=4, blocks=1).eval()
images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
widgets.explore_scales(pixels, *images)
""",
    """
import time
from matplotlib.figure import Figure
from flowlib.widgets.explorer import Explorer, slider
seen = []
def update(v):
    seen.append(v); time.sleep(0.1)
    return {}, f"{v}"
Explorer({"v": slider("v", 0, 0, 100, 1)}, Figure(figsize=(2, 1)), [], update, "Empty.")
""",
]


@pytest.fixture(scope="module")
def three(lab, server):
    """A page with three explorers: layers with a question, scales with choices, and a slow one."""
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, server[2] / "three.ipynb")
    lab.run("three.ipynb", range(len(CELLS)))
    lab.page.locator(".flowlib-explorer").nth(2).wait_for()
    return lab


def explorer(lab, i):
    return lab.page.locator(".flowlib-explorer").nth(i)


def cells(lab):
    return lab.page.locator(".jp-Notebook .jp-CodeCell").count()


def test_every_control_and_picture_has_a_name(three):
    for i in range(3):
        assert explorer(three, i).evaluate(NAMELESS) == []
    assert explorer(three, 0).get_by_role("slider", name="layers done").count() == 1
    assert explorer(three, 1).get_by_role("slider", name="scale 2 temperature").count() == 1
    assert explorer(three, 1).get_by_role("group", name="scale 1, finest").count() == 1
    assert "on a mesh" in explorer(three, 0).get_by_role("img").get_attribute("alt")
    assert explorer(three, 0).get_by_role("status").get_attribute("aria-live") == "polite"


KEYS = ["d", "d", "b", "a", "x", "Escape", "ArrowDown", "PageUp", "Home", "End", "ArrowLeft"]


def test_no_key_reaches_the_notebook(three):
    """ "d d" would delete the cell, "b" insert one; arrows would go to another cell."""
    layers, scales = explorer(three, 0), explorer(three, 1)
    for control in (
        layers.get_by_role("slider"),
        layers.get_by_role("button", name="Reset"),
        scales.get_by_role("radio").first,
    ):
        control.focus()
        for key in KEYS:
            three.page.keyboard.press(key)
        assert cells(three) == 3
        # Notebook 7 looks for this on what has the focus, before it looks at what is around it
        assert control.evaluate("e => e.hasAttribute('data-lm-suppress-shortcuts')")
    assert layers.get_by_role("slider").input_value() == "8.9"  # End, and one step back


def test_arrows_choose_and_reset_goes_back(three):
    scales = explorer(three, 1)
    scales.get_by_role("radio", name="keep").first.check()
    scales.get_by_role("radio", name="keep").first.focus()
    three.page.keyboard.press("ArrowDown")
    assert scales.get_by_role("radio", name="draw anew").first.is_checked()
    before = scales.locator("img").get_attribute("src")
    scales.get_by_role("slider", name="scale 2 temperature").fill("0.5")
    wait_for_another_picture(scales, before)
    scales.get_by_role("button", name="Reset").click()
    assert scales.get_by_role("slider", name="scale 2 temperature").input_value() == "1"
    three.page.wait_for_timeout(300)
    assert ast.literal_eval(three.ask(VALUES))[1]["temperature 2"] == 1


def test_a_number_is_typed_and_play_plays(three):
    layers = explorer(three, 0)
    before = layers.locator("img").get_attribute("src")
    number = layers.get_by_role("spinbutton")
    number.fill("1.25")
    number.press("Enter")
    wait_for_another_picture(layers, before)
    assert ast.literal_eval(three.ask(VALUES))[0] == {"layer": 1.25}
    layers.get_by_role("button", name="Play").click()
    three.page.wait_for_timeout(700)
    layers.get_by_role("button", name="Stop").click()
    assert float(number.input_value()) > 1.6


def test_shift_enter_runs_the_cell_and_a_prediction_stays(three):
    layers = explorer(three, 0)
    mine = layers.get_by_label("My prediction")
    mine.fill("It will dd")
    assert not layers.get_by_text("This.").is_visible()
    layers.get_by_text("Show answer").click()
    assert layers.get_by_text("This.").is_visible()
    layers.get_by_role("slider").focus()
    three.page.keyboard.press("Home")
    assert mine.input_value() == "It will dd"
    three.page.keyboard.press("Control+Enter")
    again = three.page.locator(".flowlib-explorer", has_text="what will happen")
    expect(again.locator("details:not([open])")).to_have_count(1, timeout=15_000)
    expect(again.get_by_label("My prediction")).to_have_value("It will dd")
    assert three.errors() == []


@pytest.mark.parametrize(("width", "height", "beside"), [(1280, 720, True), (390, 844, False)])
def test_picture_and_controls_fit_together(three, width, height, beside):
    """Beside each other on a desktop; below it the controls are under the picture."""
    page = three.page
    page.set_viewport_size({"width": width, "height": height})
    if not beside:
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    for i in range(2):
        explorer(three, i).scroll_into_view_if_needed()
        picture = explorer(three, i).locator("img").bounding_box()
        control = explorer(three, i).get_by_role("slider").first.bounding_box()
        assert picture["height"] <= 441
        if beside:
            assert control["x"] >= picture["x"] + picture["width"]
            assert explorer(three, i).bounding_box()["height"] < height - 100
        else:
            assert control["y"] >= picture["y"] + picture["height"]
        assert_nothing_is_cut_off(explorer(three, i))
        page.screenshot(path=SCREENSHOTS / f"three_{i + 1}_{width}.png")
    page.set_viewport_size({"width": 1280, "height": 720})


def test_stale_events_of_a_dragged_slider_are_dropped(three):
    slow = explorer(three, 2)
    slow.get_by_role("slider").evaluate(
        "s => { for (s.value = 1; s.value < 60; s.stepUp()) s.dispatchEvent(new Event('input')) }"
    )
    slow.locator("output:text-is('59')").wait_for()
    seen = ast.literal_eval(three.ask("seen"))
    assert seen[-1] == 59
    assert len(seen) < 10, f"59 events made {len(seen)} updates"
    assert three.errors() == []


def test_the_next_day_the_last_picture_is_there(three):
    """Saved, shut down, opened again; a slider without a kernel says so."""
    page = three.page
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    three.open("three.ipynb", again=True)
    explorer(three, 2).wait_for()
    assert page.get_by_text("Error displaying widget").count() == 0
    layers = explorer(three, 0)
    assert layers.locator("img").evaluate("i => i.complete && i.naturalWidth") == 880
    layers.get_by_role("slider").press("End")
    layers.get_by_text("this cell has to be run again").wait_for(timeout=15_000)
