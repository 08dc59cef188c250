"""The sources of the site's pages, in one folder: notebooks, and what is made from README.md."""

import base64
import html
import io
import json
import pkgutil
import re
import shutil
from pathlib import Path

from PIL import Image

import flowlib

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
NOTEBOOK = re.compile(r"\| \[[^]]*\]\(notebooks/(\w+)\.ipynb\) \| (.*) \|")


def write(pages: Path) -> None:
    """Copy or make all sources."""
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "checkers", "*.json")
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "notebooks", pages / "notebooks", ignore=skip)
    shutil.copytree(ROOT / "benchmarks", pages / "benchmarks", ignore=skip)
    for path in (pages / "notebooks").glob("[0-9]*.ipynb"):
        prepare(path)
    for folder in ("api", "site", "static"):
        (pages / folder).mkdir()
    for file in SITE.glob("flowlab.*"):
        shutil.copy(file, pages / "site")
    readme = (ROOT / "README.md").read_text()
    series = NOTEBOOK.findall(readme)
    solutions = (SITE / "solutions.md").read_text()
    solutions = solutions.replace("<!-- contents -->", contents(pages, "notebooks/solutions"))
    (pages / "solutions.md").write_text(solutions)
    cards = "\n".join(card(name, question, pages / "static") for name, question in series)
    index = (SITE / "index.md").read_text().replace("<!-- series -->", cards)
    index = index.replace("<!-- contents -->", contents(pages, "notebooks"))
    index = index.replace("<!-- flowlab -->", flowlab(pages / "static"))
    (pages / "index.md").write_text(index)
    (pages / "results.md").write_text(results(readme))
    shipped = pages / "benchmarks" / "shipped.md"
    shipped.write_text(unlink_folders(shipped.read_text().replace("](../", "](")))
    guide = (ROOT / "flowlib" / "README.md").read_text()
    modules = floors(guide)
    (pages / "api.md").write_text(api(guide, modules))
    for name in modules:
        (pages / "api" / f"{name}.md").write_text(module_page(name))


def prepare(path: Path) -> None:
    """Make the parts of a notebook sections: a second title would be a page of its own in menus.
    Fold its set-up cell, which a reader without a kernel need not pass."""
    notebook = json.loads(path.read_text())
    setup = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    setup["metadata"]["tags"] = ["hide-input"]
    for cell in notebook["cells"][1:]:
        fenced = False
        for i, line in enumerate(cell["source"] if cell["cell_type"] == "markdown" else []):
            fenced ^= line.startswith("```")
            if line.startswith("# ") and not fenced:
                cell["source"][i] = "#" + line
    path.write_text(json.dumps(notebook))


def flowlab(pictures: Path) -> str:
    """The way into Flow Lab, where it was built."""
    if not (SITE / "flowlab.html").exists():
        return ""
    shutil.copy(SITE / "flowlab.png", pictures)
    return (
        '<a class="card wide" href="flowlab.html"><img src="_static/flowlab.png" alt="Flow Lab: '
        'points, the warped grid and the density of a flow, its latents, and a Play button">'
        "<strong>▶ Flow Lab</strong> <span>Train a Real NVP here, in your browser: choose a "
        "density or paint one, and press Play.</span></a>"
    )


def card(name: str, question: str, pictures: Path) -> str:
    """A notebook on the first page: its title, question, minutes, and its first picture."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    opening = "".join(cells[0]["source"])
    minutes = re.search(r"\*\*Time\*\* (.*)", opening)[1]
    png = next(
        output["data"]["image/png"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    )
    picture = Image.open(io.BytesIO(base64.b64decode("".join(png)))).convert("RGB")
    picture.thumbnail((640, 400))
    picture.save(pictures / f"{name}.png", optimize=True)
    title = html.escape(opening.splitlines()[0].removeprefix("# "))
    return (
        f'<a class="card" href="notebooks/{name}.html"><img src="_static/{name}.png" alt="">'
        f"<strong>{title}</strong><span>{html.escape(question)}</span><small>{minutes}</small></a>"
    )


def contents(pages: Path, folder: str) -> str:
    """Lines of a table of contents, with the title that each notebook opens with."""
    lines = []
    for path in sorted((pages / folder).glob("[0-9]*.ipynb")):
        title = json.loads(path.read_text())["cells"][0]["source"][0].strip("# \n")
        lines.append(f"{title} </{folder}/{path.stem}>")
    return "\n".join(lines)


def unlink_folders(text: str) -> str:
    """A folder has no page: its link becomes plain text."""
    folder = re.compile(r"\[([^]]*)\]\((?!http)([^)#]*)\)")
    return folder.sub(lambda m: m[1] if (ROOT / m[2]).is_dir() else m[0], text)


def results(readme: str) -> str:
    text = re.search("^## Results\n(.*?)<!-- end of results -->", readme, re.MULTILINE | re.DOTALL)
    return f"# Results\n\n{unlink_folders(text[1])}"


def floors(guide: str) -> list[str]:
    """The modules of flowlib in its README's reading order, then those that it leaves out."""
    everything = [m.name for m in pkgutil.iter_modules(flowlib.__path__)]
    order = re.findall(r"\]\((\w+?)(?:\.py|/)?\)", guide)
    return [name for name in dict.fromkeys([*order, *everything]) if name in everything]


def api(guide: str, modules: list[str]) -> str:
    text = re.sub(r"\]\((\w+?)(?:\.py|/)?\)", r"](api/\1.md)", guide).replace("](../", "](")
    return f"{text}\n\n" + toctree(f"api/{name}" for name in modules)


def toctree(names) -> str:
    return "```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def module_page(name: str) -> str:
    title = name.replace("_", r"\_")
    return (
        f"# flowlib.{title}\n\n```{{eval-rst}}\n.. automodule:: flowlib.{name}\n   :members:\n```\n"
    )


def slug(title: str) -> str:
    """Jupyter's anchor of a heading, so that its links work on the site, too."""
    return title.replace(" ", "-")
