"""Execute notebooks in place and store their outputs, clean enough to commit.

    python notebooks/execute.py          those that changed, or whose part of flowlib did
    python notebooks/execute.py --all    every one
    python notebooks/execute.py 02       those whose path contains "02"

Each notebook remembers, in its metadata, a digest of its own cells, one of the flowlib code that it
imports, and the whole seconds that it took: the one source of all running times. Notebook 00 comes
last, and again whenever a chapter was executed, because its map reads the other chapters.
"""

import argparse
import ast
import base64
import hashlib
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "flowlib"
MAP = "00_start_here.ipynb"
PHOTOGRAPHS = ("05", "06", "07", "08", "09")  # the notebooks whose figures need more colours
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebook_paths():
    return sorted(HERE.glob("[0-9]*.ipynb")) + sorted(HERE.glob("solutions/[0-9]*.ipynb"))


def source_digest(nb):
    """A digest of what the cells say."""
    return hashlib.sha256(
        "\0".join(cell.cell_type + cell.source for cell in nb.cells).encode()
    ).hexdigest()[:16]


def library_digest(nb):
    """A digest of the flowlib code behind a notebook's imports, no docstrings or comments."""
    code = "\n".join(
        cell.source for cell in nb.cells if cell.cell_type == "code" and "flowlib" in cell.source
    )
    code = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("%"))
    todo, seen = imported_modules(ast.parse(code), PACKAGE.parent), {}
    while todo:
        path = todo.pop()
        if path not in seen:
            tree = ast.parse(path.read_text())
            todo |= imported_modules(tree, path.parent)
            seen[path] = ast.dump(strip_docstrings(tree))
    return hashlib.sha256("\0".join(seen[path] for path in sorted(seen)).encode()).hexdigest()[:16]


def imported_modules(tree, folder):
    """The files inside flowlib that a syntax tree's import statements name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            base = PACKAGE.parent
        elif isinstance(node, ast.ImportFrom):
            base = folder if node.level <= 1 else folder.parents[node.level - 2]
            base = base if node.level else PACKAGE.parent
            names = [node.module or ""] + [
                f"{node.module or ''}.{alias.name}" for alias in node.names
            ]
        else:
            continue
        for name in names:
            path = base.joinpath(*filter(None, name.split(".")))
            found |= {
                file
                for file in (path.with_suffix(".py"), path / "__init__.py")
                if file.is_file() and PACKAGE in file.parents
            }
    return found


def strip_docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return tree


def is_stale(nb):
    stored = nb.metadata.get("flowlib", {})
    return stored.get("source") != source_digest(nb) or stored.get("library") != library_digest(nb)


def execute(path):
    """Run one notebook from the top, write it back with its outputs, and return the seconds."""
    nb, start = nbformat.read(path, as_version=4), time.perf_counter()
    NotebookClient(
        nb,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    nb.metadata = {  # as JupyterLab writes it: otherwise a notebook is unsaved when opened
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": nb.metadata.language_info,
        "flowlib": {
            "source": source_digest(nb),
            "library": library_digest(nb),
            "seconds": round(time.perf_counter() - start),
        },
    }
    for i, cell in enumerate(nb.cells):
        cell.id = f"{path.stem}-{i:02d}"
        if cell.cell_type == "code":
            # Widgets live in a running kernel only: progress bars are not stored, and of sliders a
            # picture is.
            cell.outputs = [still for out in cell.outputs for still in without_widgets(out)]
            for out in cell.outputs:
                if "image/png" in out.get("data", {}):
                    colours = 256 if path.name[:2] in PHOTOGRAPHS else 128
                    out.data["image/png"] = with_palette(out.data["image/png"], colours)
    nbformat.write(nb, path)
    return nb.metadata["flowlib"]["seconds"]


def without_widgets(out):
    """The output; for an explorer its question and its picture, for other widgets nothing."""
    if WIDGET not in out.get("data", {}):
        return [out]
    if "image/png" not in out.data:
        return []
    del out.data[WIDGET]
    look = out.metadata["image/png"]
    caption, small = look.pop("caption"), io.BytesIO()
    still = Image.open(io.BytesIO(base64.b64decode(out.data["image/png"])))
    still.resize((look["width"], look["height"]), Image.Resampling.LANCZOS).save(small, "png")
    out.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    return [nbformat.v4.new_output("display_data", {"text/markdown": caption}), out]


def with_palette(png, colours):
    """Much the same picture in its best colours, base64 in and out, at a third of the size."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    packed = io.BytesIO()
    image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        packed, "png", optimize=True
    )
    return base64.b64encode(packed.getvalue()).decode()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of the paths to execute, changed or not")
    parser.add_argument("--all", action="store_true", help="execute every notebook")
    args = parser.parse_args()
    if os.environ.get("FLOWLIB_FAST", "0") not in ("", "0"):
        sys.exit("FLOWLIB_FAST is set: the outputs and seconds of short budgets are not stored")
    paths = [
        p
        for p in notebook_paths()
        if not args.names or any(name in str(p.relative_to(HERE)) for name in args.names)
    ]
    paths.sort(key=lambda path: path.name == MAP)
    changed = False
    for i, path in enumerate(paths, start=1):
        print(f"[{i}/{len(paths)}] {path.relative_to(HERE)} … ", end="", flush=True)
        due = args.all or args.names or is_stale(nbformat.read(path, as_version=4))
        if not (due or (path.name == MAP and changed)):
            print("up to date")
            continue
        changed = True
        try:
            seconds = execute(path)
        except CellExecutionError as error:
            sys.exit(f"failed; the notebook is left as it was\n{error}")
        print(f"{seconds} s, {path.stat().st_size / 1000:.0f} KB", flush=True)


if __name__ == "__main__":
    main()
