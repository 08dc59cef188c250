"""Every page of the site that `make site` has built, opened in Chromium as a file."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

SITE = Path(__file__).resolve().parents[2] / "build" / "site"
PAGES = sorted(SITE.rglob("*.html"))
LOOK = """() => ({
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  anchors: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
  unnamed: [...document.querySelectorAll('article img')]
    .filter(i => !i.alt.trim() && !i.closest('a.card')).map(i => i.src),
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
  formulas: [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height),
  latex: [...document.querySelectorAll('article .math, article p, article li, article td')]
    .map(e => e.innerText).filter(t => /\\\\(frac|log|mathcal|partial|det)|\\$\\$/.test(t)),
  wide: document.documentElement.scrollWidth - innerWidth,
})"""


@pytest.fixture(scope="module")
def seen(browser):
    """What each page shows, by its address; console errors and requests that fail or leave."""
    if not PAGES:
        pytest.skip("the site is not built: type  make site")
    found, noise, under_way = {}, [], set()
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.on("console", lambda m: m.type == "error" and noise.append((page.url, m.text)))
    page.on("pageerror", lambda error: noise.append((page.url, str(error))))
    page.on("requestfailed", lambda request: noise.append((page.url, request.url)))
    page.on("request", lambda r: r.url.startswith("http") and noise.append((page.url, r.url)))
    page.on("request", lambda request: under_way.add(request))
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda request: under_way.discard(request))
    for path in PAGES:
        page.goto(path.as_uri())
        for _ in range(500):  # a worker's script comes after the page; leaving would cut it off
            if not under_way:
                break
            page.wait_for_timeout(10)
        found[path.as_uri()] = page.evaluate(LOOK)
    yield found, noise
    context.close()


def test_no_page_logs_an_error_or_asks_for_what_is_not_there_or_not_here(seen):
    assert seen[1] == []


def test_every_chapter_and_every_solution_is_a_page():
    if not PAGES:
        pytest.skip("the site is not built: type  make site")
    notebooks = SITE.parents[1] / "notebooks"
    expected = [path.relative_to(notebooks) for path in notebooks.rglob("[0-9]*.ipynb")]
    assert [p for p in expected if not (SITE / "notebooks" / p).with_suffix(".html").exists()] == []


def dead(link, pages):
    """Whether a link inside the site leads to no file, or to an anchor that its page lacks."""
    address, anchor = map(unquote, urldefrag(link))
    if address not in pages:
        return not Path(address.removeprefix("file://")).is_file()
    return bool(anchor) and anchor not in pages[address]["anchors"]


def test_every_link_inside_the_site_leads_to_a_page_and_to_its_anchor(seen):
    inside = {
        (page, link) for page in seen[0] for link in seen[0][page]["links"] if "file:" in link
    }
    assert len(inside) > 1_000
    assert [pair for pair in sorted(inside) if dead(pair[1], seen[0])] == []


def test_every_picture_is_there_and_has_an_alt_text(seen):
    assert [p for content in seen[0].values() for p in content["broken"]] == []
    assert [p for content in seen[0].values() for p in content["unnamed"]] == []


def test_equations_are_drawn(seen):
    formulas = {page: content["formulas"] for page, content in seen[0].items()}
    assert sum(map(len, formulas.values())) > 1_000
    assert [page for page, heights in formulas.items() if min(heights, default=9) < 3] == []
    assert [text for content in seen[0].values() for text in content["latex"]] == []


def test_no_page_is_wider_than_a_phone(seen):
    assert {page: content["wide"] for page, content in seen[0].items() if content["wide"] > 0} == {}


def test_search_finds_a_page(seen, browser):
    page = browser.new_page()
    page.goto((SITE / "search.html").as_uri() + "?q=dequantisation")
    page.wait_for_selector("#search-results li a")
    titles = page.locator("#search-results li a").all_inner_texts()
    assert any("MNIST" in title for title in titles)
    page.close()


def explorers():
    """The names of the explorers of each notebook, by the last lines of its cells."""
    found = {}
    for path in sorted((SITE.parents[1] / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        last = ["".join(c["source"]).split("\n")[-1] for c in cells if c["cell_type"] == "code"]
        found[path.stem] = [line for line in last if re.fullmatch(r"explorer\w*", line)]
    return {name: lines for name, lines in found.items() if lines}


@pytest.fixture(scope="module")
def page(browser):
    if not PAGES:
        pytest.skip("the site is not built: type  make site")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


def shot(twin):
    """What a twin shows, once its picture is there: pixels and readout."""
    twin.page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    return twin.locator(".frame").screenshot(), twin.locator("output").inner_text()


@pytest.mark.parametrize("name", explorers())
def test_every_explorer_has_a_twin_that_moves_by_key_and_by_mouse(page, name):
    page.goto((SITE / "notebooks" / f"{name}.html").as_uri())
    twins = page.locator(".twin").all()
    assert len(twins) == len(explorers()[name])
    for twin in twins:
        assert len(twin.locator("img").get_attribute("alt")) > 20
        assert twin.locator("output").get_attribute("aria-live") == "polite"
        for label in twin.locator("label").all():
            assert label.locator("span").inner_text().strip()
        slider = twin.get_by_role("slider").first
        slider.scroll_into_view_if_needed()
        slider.focus()
        page.keyboard.press("Home")
        first = shot(twin)
        page.keyboard.press("End")
        last = shot(twin)
        assert slider.get_attribute("aria-valuetext") == twin.locator("b").first.inner_text()
        box = slider.bounding_box()
        page.mouse.click(box["x"] + 0.42 * box["width"], box["y"] + box["height"] / 2)
        between = shot(twin)
        for picture_or_readout in (0, 1):  # both ends may be alike, as those of an angle
            ends = first[picture_or_readout], last[picture_or_readout]
            assert between[picture_or_readout] not in ends
        page.keyboard.press("Home")
        assert shot(twin) == first


def test_menus_stay_and_a_slider_sets_the_others_back(page):
    page.goto((SITE / "notebooks" / "06_masks_and_scales.html").as_uri())
    twin = page.locator(".twin")
    menus, sliders = twin.locator("select"), twin.get_by_role("slider")
    menus.nth(0).select_option("keep")
    kept = shot(twin)
    assert "0.0 of 255" in kept[1]
    menus.nth(1).select_option("of the other")
    swapped = shot(twin)
    assert swapped[0] != kept[0] and swapped[1] != kept[1]
    start = sliders.nth(1).input_value()
    sliders.nth(1).fill("0")
    sliders.nth(0).fill("0")
    assert sliders.nth(1).input_value() == start
    assert menus.nth(1).locator("option:checked").inner_text() == "of the other"


@pytest.mark.parametrize(
    "notebook, name",
    [
        ("02_two_moons", "explorer_latent"),
        ("06_masks_and_scales", "explorer"),
        ("12_conditional_flows", "explorer"),
    ],
)
def test_a_twin_says_what_the_live_explorer_says(page, monkeypatch, notebook, name):
    monkeypatch.syspath_prepend(str(SITE.parents[1] / "site"))
    import twins

    page.goto((SITE / "notebooks" / f"{notebook}.html").as_uri())
    at = explorers()[notebook].index(name)
    state = json.loads(page.locator(".twin").nth(at).get_attribute("data-twin"))
    twin = twins.Twin(twins.build(notebook, name)[0])
    rows = list(twin.rows())
    assert len(rows) == len(state["rows"])
    for row in (0, len(rows) // 2, len(rows) - 1):
        for frame in (0, -1):
            _, readout = twin.show(rows[row][frame])
            assert state["rows"][row]["readouts"][frame] == readout
