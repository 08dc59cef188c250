"""Every page of the site that `make site` has built, opened in Chromium as a file."""

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
    found, noise = {}, []
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.on("console", lambda m: m.type == "error" and noise.append((page.url, m.text)))
    page.on("pageerror", lambda error: noise.append((page.url, str(error))))
    page.on("requestfailed", lambda request: noise.append((page.url, request.url)))
    page.on("request", lambda r: r.url.startswith("http") and noise.append((page.url, r.url)))
    for path in PAGES:
        page.goto(path.as_uri())
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


@pytest.mark.parametrize("name", ["00_start_here", "02_two_moons"])
def test_a_twin_of_a_slider_moves_by_key_and_by_mouse(browser, name):
    if not PAGES:
        pytest.skip("the site is not built: type  make site")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((SITE / "notebooks" / f"{name}.html").as_uri())
    twin = page.locator(".twin").first
    slider, output = twin.get_by_label("layers done"), twin.locator("output")
    first = twin.locator(".frame").screenshot()
    assert "the data" in output.inner_text()
    slider.focus()
    page.keyboard.press("End")
    assert "layer 9 of 9" in output.inner_text()
    assert slider.get_attribute("aria-valuetext") == "9"
    last = twin.locator(".frame").screenshot()
    page.keyboard.press("ArrowLeft")
    assert "layer 9 of 9" in output.inner_text() and "100%" not in output.inner_text()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    middle = twin.locator(".frame").screenshot()
    assert len({first, middle, last}) == 3
    page.keyboard.press("Home")
    assert twin.locator(".frame").screenshot() == first
    page.close()
