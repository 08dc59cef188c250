"""Draws site/flowlab.png, the README's picture: Flow Lab with the trained moons, in Chromium."""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SITE = Path(__file__).resolve().parents[1]

with sync_playwright() as playwright:
    path = shutil.which("chromium") or playwright.chromium.executable_path
    browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    look = {"viewport": {"width": 1280, "height": 900}, "bypass_csp": True}
    page = browser.new_context(**look, color_scheme="light").new_page()
    page.goto((SITE / "flowlab.html").as_uri())
    page.get_by_role("button", name="Load the trained moons").click()
    page.evaluate("setLatent([-0.9, 0.6])")
    page.wait_for_function("state.gap !== null && state.frame?.resolution > 100", timeout=120_000)
    page.wait_for_timeout(2_000)
    screenshot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    screenshot.quantize(256, Image.Quantize.MAXCOVERAGE).save(SITE / "flowlab.png", optimize=True)
    browser.close()
print(f"flowlab.png: {(SITE / 'flowlab.png').stat().st_size:,} bytes")
