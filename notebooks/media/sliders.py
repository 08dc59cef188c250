"""Pictures of explorers as JupyterLab shows them: python notebooks/media/sliders.py

The explorers are those of the site, drawn from stand-ins for the real images. Needs Chromium.
"""

import base64
import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

MEDIA = Path(__file__).resolve().parent
WIDGETS = MEDIA.parents[1] / "flowlib" / "widgets"
PICTURES = {  # name: notebook, explorer, values of its first controls
    "latent": ("02_two_moons", "explorer_latent", [-1.8]),
    "attributes": ("08_celeba", "explorer_attributes", [0, 1.5]),
    "manifold": ("08_celeba", "explorer_manifold", []),
}
PAGE = """<!doctype html><style>body {{ margin: 0; width: 916px }} {style}</style><main></main>
<script type="module">
const state = {state}
state._picture = Uint8Array.from(atob(state._picture), (c) => c.charCodeAt(0))
const explorer = await import("data:text/javascript;base64,{script}")
const model = {{ get: (name) => state[name], on() {{}} }}
explorer.default.render({{ model, el: document.querySelector("main") }})
</script>"""


def page(explorer) -> str:
    """A page that shows an explorer, without a kernel and without its question."""
    state = explorer.get_state()
    state["_picture"] = base64.b64encode(state["_picture"]).decode()
    state["question"] = state["answer"] = ""
    script = base64.b64encode((WIDGETS / "explorer.js").read_bytes()).decode()
    style = (WIDGETS / "explorer.css").read_text()
    return PAGE.format(state=json.dumps(state, default=str), script=script, style=style)


if __name__ == "__main__":
    sys.path.insert(0, str(MEDIA.parents[1] / "site"))
    build = runpy.run_path(str(MEDIA.parents[1] / "site" / "twins.py"))["build"]
    os.environ["FLOWLIB_DATA"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # no photographs
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (notebook, which, values) in PICTURES.items():
            explorer, _ = build(notebook, which)
            for control, value in zip(explorer.controls.values(), values):
                control.value = value
            tab = browser.new_page(viewport={"width": 916, "height": 700})
            tab.set_content(page(explorer))
            tab.locator("main img").wait_for()
            tab.locator("main").screenshot(path=MEDIA / f"sliders_{name}.png")
