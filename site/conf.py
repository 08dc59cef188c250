"""How Sphinx makes the book's site: `make site`. Pages come from the executed notebooks, none is
run again, and no page asks another machine for anything."""

import base64
import hashlib
import json
import re
import sys
from functools import partial
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

SITE = Path(__file__).resolve().parent
sys.path[:0] = [str(SITE), str(SITE.parent)]

import equations  # noqa: E402
import pages  # noqa: E402
import twins  # noqa: E402

SOURCE = pages.ROOT / "build" / "site-source"  # made anew by each build
TWINS = json.loads(twins.TWINS.with_suffix(".json").read_text())  # drawn by site/twins.py
project = "Normalizing flows, from two moons up"
author = copyright = "The flowlib authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["notebooks/checkers", "**/.ipynb_checkpoints"]
suppress_warnings = [
    "myst.header",  # a solutions page goes from its title to headings of the third level
    "mystnb.unknown_mime_type",  # an explorer's view needs a kernel: see add_twins
]

html_theme = "furo"
html_title = "Normalizing flows"
html_static_path = ["static", str(SOURCE / "static"), str(twins.TWINS)]
templates_path = [str(SITE / "templates")]
html_extra_path = [str(path) for path in [SITE / "flowlab.html"] if path.exists()]
html_sidebars = {"**": [f"sidebar/{part}.html" for part in ("brand", "search", "scroll-start")]}
if html_extra_path:
    html_sidebars["**"].append("flowlab.html")
html_sidebars["**"] += [f"sidebar/{part}.html" for part in ("navigation", "scroll-end")]
html_css_files, html_js_files = ["site.css"], [("twins.js", {"defer": "defer"})]
html_copy_source = False
html_show_search_summary = False  # the summaries are fetched, which file:// does not allow
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
highlight_language = "text"  # of a block that names none
pygments_style, pygments_dark_style = "friendly", "github-dark"

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "The set-up cell", "Fold the set-up cell"
nb_render_markdown_format = "myst"  # equations and links in outputs, too
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "pages.slug"
autodoc_inherit_docstrings = False  # what torch says of extra_repr is of no use here
autodoc_member_order = "bysource"
autodoc_typehints = "signature"


def visit_equation(writer, node, display):
    writer.body.append(equations.mathml(node.astext(), display))
    raise nodes.SkipNode


def add_font(app, exception):
    if not exception:
        equations.save_font(Path(app.outdir) / "_static" / "stix-two-math.woff")


def stored_images(path):
    """Of each picture that a notebook has stored: its bytes, and its alt text."""
    for cell in json.loads(path.read_text())["cells"]:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                meta = output["metadata"].get("image/png", {})
                yield base64.b64decode("".join(png)), meta.get("alt", "")


def add_alt_texts(app, doctree):
    """myst-nb names pictures by the digest of their bytes, and leaves their alt texts behind."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix == ".ipynb":
        alts = {hashlib.sha256(png).hexdigest(): alt for png, alt in stored_images(path)}
        for image in doctree.findall(nodes.image):
            image.setdefault("alt", alts.get(Path(image["uri"]).stem, ""))


def add_twins(app, doctree):
    """In place of what the cell of an explorer has stored, its twin, which needs no kernel."""
    notebook = Path(app.env.docname).name
    for cell in list(doctree.findall(nodes.container)):
        if "cell" not in cell["classes"]:
            continue
        name = twins.explorer_of(cell.children[0].astext())
        if name:
            cell[1:] = [nodes.raw("", TWINS[f"{notebook} {name}"], format="html")]


def open_flowlab(app, doctree):
    """Links to Flow Lab's file open it, where other files are downloaded."""
    up = "../" * app.env.docname.count("/")
    for link in list(doctree.findall(addnodes.download_reference)):
        if link["reftarget"].endswith("site/flowlab.html"):
            target = nodes.reference("", "", *link.children, refuri=f"{up}flowlab.html")
            link.replace_self(target)


def restructure(app, what, name, obj, options, lines):
    """Docstrings are plain text with examples; Sphinx wants reStructuredText."""
    blocks = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip()):
        blocks += re.split(r"^(?=>>>)", paragraph, maxsplit=1, flags=re.MULTILINE)
    lines[:] = "\n\n".join(map(restructured, filter(str.strip, blocks))).split("\n")


def restructured(block):
    literal = None
    if block.lstrip().startswith(">>>"):
        literal = ".. code-block:: pycon"
    elif re.search(r"\S {3,}\S|^ ", block, flags=re.MULTILINE):
        literal = ".. code-block:: text"
    if literal:
        return literal + "\n\n" + re.sub("^", "    ", block, flags=re.MULTILINE)
    return "".join(
        f"``{part.strip('`')}``" if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part)
        for part in re.split(r"(`[^`]+`)", block)
    )


def setup(app):
    pages.write(SOURCE)
    inline, block = (partial(visit_equation, display=display) for display in ("inline", "block"))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("build-finished", add_font)
    app.connect("doctree-read", add_alt_texts)
    app.connect("doctree-read", add_twins)
    app.connect("doctree-read", open_flowlab, priority=400)  # before Sphinx copies the file
    app.connect("autodoc-process-docstring", restructure)
