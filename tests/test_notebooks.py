"""Hygiene of the committed notebooks: executed in order, clean, small, built as promised."""

import ast
import base64
import importlib
import io
import json
import math
import re
import runpy
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from PIL import Image

import flowlib

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
EXECUTE = runpy.run_path(str(FOLDER / "execute.py"))
KIT = SimpleNamespace(**runpy.run_path(str(FOLDER / "checkers" / "kit.py")))
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("[0-9]*.ipynb"))
CLOSING = ["Limits", "Summary", "Exercises", "References", "Next"]
SERIES = """00_start_here 01_change_of_variables 02_two_moons 03_sinusoid 04_when_flows_break
05_mnist 06_masks_and_scales 07_cifar10 08_celeba 09_using_likelihoods
10_flows_for_inference 11_scaling_up 12_conditional_flows 13_after_realnvp"""
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
SETUP = f"""import sys

if "google.colab" in sys.modules:  # whose machines start without flowlib
    get_ipython().system("pip install -q git+{ADDRESS}")

from flowlib import SERIES

sys.path.insert(0, str(SERIES / "notebooks"))  # where the checkers of the exercises lie

"""
LIMIT_KB = {"05": 2000, "06": 2000, "07": 2000, "08": 2000}


def name(path):
    return path.stem


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=name)
every_chapter = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)


@cache
def read(path):
    return nbformat.read(path, as_version=4)


def markdown(nb):
    return "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def title(path):
    return re.match(r"# (.+)", read(path).cells[0].source)[1]


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def plain(source):
    """A cell as Python: without magics."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def test_every_notebook_has_solutions():
    assert [path.stem + "_solutions" for path in NOTEBOOKS] == [path.stem for path in SOLUTIONS]


def test_every_notebook_is_one_of_the_series():
    assert not [path.stem for path in NOTEBOOKS if path.stem not in SERIES.split()]


@every_notebook
def test_is_executed_in_order(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.source.strip() for cell in cells), "an empty code cell"


@every_notebook
def test_outputs_belong_to_this_source(path):
    nb = read(path)
    assert nb.metadata.flowlib.source == EXECUTE["source_digest"](nb), (
        f"run: make notebooks ({path.name} changed since it was executed)"
    )


@every_notebook
def test_outputs_hold_no_errors_warnings_or_widgets(path):
    outputs = [out for cell in code_cells(read(path)) for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    assert not [out for out in outputs if EXECUTE["WIDGET"] in out.get("data", {})]


@every_notebook
def test_holds_nothing_of_one_machine(path):
    text = path.read_text()
    assert not re.search(r"/(home|root|Users|tmp|work|var|opt)/|[A-Z]:\\\\", text), (
        "an absolute path"
    )
    assert not re.search(r"<[\w.]+ (object )?at 0x[0-9a-f]+>", text), "an object's address"


@every_notebook
def test_kernel_is_python3(path):
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


@every_notebook
def test_is_small_enough(path):
    limit = LIMIT_KB.get(path.stem[:2], 1000)
    assert path.stat().st_size <= limit * 1000, (
        f"{path.stat().st_size / 1000:.0f} KB stored, at most {limit}"
    )


@every_notebook
def test_a_paragraph_follows_every_figure(path):
    cells = read(path).cells
    for i, cell in enumerate(cells):
        if shows_an_explorer(cell):
            continue  # the cell that drives one like it follows
        if cell.cell_type == "code" and any(
            "image/png" in out.get("data", {}) for out in cell.outputs
        ):
            following = cells[i + 1] if i + 1 < len(cells) else None
            assert following and following.cell_type == "markdown", (
                f"no paragraph after the figure of cell {i}"
            )
            assert not following.source.startswith("#"), (
                f"a heading, not a paragraph, follows the figure of cell {i}"
            )


@every_notebook
def test_every_figure_and_drawing_says_what_it_shows(path):
    """In an alt text of its own, at least a short sentence long."""
    cells = read(path).cells
    alts = [
        out.get("metadata", {}).get("image/png", {}).get("alt", "")
        for cell in cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    for cell in cells:
        if cell.cell_type == "markdown":
            assert "<img" not in cell.source, "pictures are ![alt text](file)"
            alts += re.findall(r"!\[([^\]]*)\]\(", cell.source)
    assert all(len(alt) >= 40 for alt in alts), [alt for alt in alts if len(alt) < 40]
    assert len(set(alts)) == len(alts), "two pictures share an alt text"


@every_chapter
def test_opens_as_agreed(path):
    cells = read(path).cells
    opening = "\n".join(cell.source for cell in cells[:4] if cell.cell_type == "markdown")
    assert re.match(rf"# {path.stem[:2]} · \S", opening), "the title must be '# NN · Title'"
    for part in ["**You will be able to**", "**Prerequisites**", "**Time**"]:
        assert part in opening, f"the opening lacks {part}"
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    assert "plotting.use_style()" in cells[first].source, "the first code cell sets up"
    assert any("image/png" in out.get("data", {}) for out in cells[first + 1].get("outputs", [])), (
        "the hero figure comes right after the set-up"
    )


@every_notebook
def test_opens_in_colab_and_sets_up_as_all_do(path):
    """With the address of pyproject.toml; how this goes in Colab itself is untested."""
    github = ADDRESS.replace("https://github.com", "https://colab.research.google.com/github")
    link = f"[▶ Open in Colab]({github}/blob/main/{path.relative_to(ROOT).as_posix()})"
    assert link in read(path).cells[0].source.split("\n\n")
    assert code_cells(read(path))[0].source.startswith(SETUP)


@pytest.fixture
def set_up(monkeypatch):
    """Runs the set-up; returns what it asked the shell to do."""
    asked = []
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in [name for name in sys.modules if name.split(".")[0] == "checkers"]:
        monkeypatch.delitem(sys.modules, module)

    def run():
        exec(SETUP, {"get_ipython": lambda: SimpleNamespace(system=asked.append)})
        return asked

    return run


@pytest.mark.parametrize("start", [ROOT, FOLDER, FOLDER / "solutions", Path("/")], ids=str)
def test_the_checkers_are_found_wherever_the_kernel_was_started(start, set_up, monkeypatch):
    monkeypatch.chdir(start)
    set_up()
    assert Path(importlib.import_module("checkers.kit").__file__) == FOLDER / "checkers" / "kit.py"
    assert flowlib.SERIES == ROOT


def test_the_set_up_installs_flowlib_in_colab_and_nowhere_else(set_up, monkeypatch):
    assert set_up() == []
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert set_up() == [f"pip install -q git+{ADDRESS}"]


@every_chapter
def test_closes_as_agreed(path):
    headings = [
        line[3:]
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    assert headings[-len(CLOSING) :] == CLOSING


@every_chapter
def test_code_comes_in_small_cells(path):
    lengths = sorted(lines_of_code(cell.source) for cell in code_cells(read(path)))
    assert lengths[len(lengths) // 2] <= 12 and lengths[-1] <= 40, lengths


def lines_of_code(source):
    """Lines to read: all but imports, blank lines, and those that only close a bracket."""
    imports = [
        n for n in ast.parse(plain(source)).body if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    imported = {line for n in imports for line in range(n.lineno, n.end_lineno + 1)}
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(re.search(r"\w", line)) for i, line in lines if i not in imported)


def test_imports_blank_lines_and_brackets_are_no_lines_of_code():
    assert lines_of_code("import a\nfrom b import (\n    c,\n)\n\nx = f(\n    c,\n)\n%time x") == 3


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem[:2] >= "02"], ids=name)
def test_imports_coupling_mask_and_loss_code_from_flowlib(path):
    nodes = [n for cell in code_cells(read(path)) for n in ast.walk(ast.parse(plain(cell.source)))]
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("flowlib")]
    imported = {f"{n.module}.{alias.name}" for n in froms for alias in n.names}
    for part in ["coupling", "masks", "losses"]:
        assert any(f".{part}" in name for name in imported), f"{part} is not imported from flowlib"


@every_notebook
def test_linked_files_exist(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", cell.source):
                assert (path.parent / target).exists(), f"{target} is linked and not there"


def shows_an_explorer(cell):
    """The name of the explorer that a code cell ends with."""
    last = cell.source.splitlines()[-1] if cell.cell_type == "code" else ""
    return re.fullmatch(r"explorer\w*", last) and last


@every_chapter
def test_a_slider_has_a_question_and_a_test_that_leaves_it_where_it_stands(path):
    cells, shown = read(path).cells, 0
    for i, cell in enumerate(cells):
        if name := shows_an_explorer(cell):
            shown += 1
            assert f'{name}.ask(\n    "Before you move the slider' in cell.source
            driver = next(c.source for c in cells[i + 1 :] if c.cell_type == "code")
            assert "driven" in driver and "controls" in driver and "assert" in driver, (
                f"the cell after {name} does not drive an explorer like it"
            )
        elif cell.cell_type == "code":
            used = {n.id for n in ast.walk(ast.parse(plain(cell.source))) if type(n) is ast.Name}
            assert not [n for n in used if n.startswith("explorer")], "a reader's explorer is used"
    if shown:
        solutions = "\n".join(
            cell.source
            for cell in read(FOLDER / "solutions" / f"{path.stem}_solutions.ipynb").cells
        )
        assert re.search(
            r"^## The questions? (before|about) the sliders?$", solutions, flags=re.MULTILINE
        )


def test_every_question_has_an_answer_and_every_answer_a_question():
    answers = runpy.run_path(str(FOLDER / "checkers" / "answers.py"))["ANSWERS"]
    asked = re.findall(
        r'ANSWERS\["(.+?)"\]', "\n".join(c.source for p in NOTEBOOKS for c in code_cells(read(p)))
    )
    assert sorted(asked) == sorted(answers)


def test_of_an_explorer_its_question_and_its_picture_are_stored():
    look = {"alt": "Points.", "width": 4, "height": 4, "caption": "Before you? Run this cell."}
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")
    png = base64.b64encode(png.getvalue()).decode()
    data = {EXECUTE["WIDGET"]: {"model_id": "1"}, "image/png": png, "text/plain": "Points."}
    shown = nbformat.v4.new_output("display_data", data, metadata={"image/png": look})
    bar = nbformat.v4.new_output("display_data", {EXECUTE["WIDGET"]: {"model_id": "2"}})
    text, picture = EXECUTE["without_widgets"](shown)
    assert text.data["text/markdown"] == "Before you? Run this cell."
    assert set(picture.data) == {"image/png", "text/plain"}
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).size == (4, 4)
    assert picture.metadata["image/png"] == {"alt": "Points.", "width": 4, "height": 4}
    assert EXECUTE["without_widgets"](bar) == []


def test_words_are_counted_without_formulas_code_and_targets():
    assert KIT.words("Two words\n$$x\n= y$$ and $z$ the [link's text](a/b.md)\n```\ncode\n```") == 6


@every_chapter
def test_says_how_long_it_takes_to_read_and_to_run(path):
    """Reading at 130 words a minute; running as `execute.py` measured it in full."""
    nb = read(path)
    line = re.search(
        r"^\*\*Time\*\* about (\d+) minutes to read, (\d+) to run$",
        nb.cells[0].source,
        re.MULTILINE,
    )
    assert line, "the opening lacks the line '**Time** about R minutes to read, M to run'"
    to_read, to_run = map(int, line.groups())
    assert to_read % 5 == 0
    assert abs(to_read - KIT.words(markdown(nb)) / KIT.PACE) <= 5
    seconds = nb.metadata.flowlib.seconds
    assert seconds / 120 <= to_run <= max(1, math.ceil(seconds / 30)), f"it ran {seconds} s"


@every_chapter
def test_links_to_its_neighbours_at_both_ends(path):
    """← the one before · the map · the one after →"""
    i, links = NOTEBOOKS.index(path), []
    if i > 0:
        before = NOTEBOOKS[i - 1]
        links = [f"← [{title(before)}]({before.name})", f"[Map]({NOTEBOOKS[0].name})"]
    if i + 1 < len(NOTEBOOKS):
        after = NOTEBOOKS[i + 1]
        links.append(f"[{title(after)}]({after.name}) →")
    paragraphs = markdown(read(path)).strip().split("\n\n")
    assert [paragraphs[1], paragraphs[-1]] == [" · ".join(links)] * 2


@every_chapter
def test_exercises_stand_in_the_text_and_are_linked_from_the_end(path):
    text = markdown(read(path))
    headings = re.findall(r"^#+ (Exercise\b.*)$", text, re.MULTILINE)
    assert headings == [f"Exercise {i + 1}" for i in range(len(headings))] != []
    closing = re.search(r"^## Exercises$(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    links = re.findall(r"\[(Exercise \d+)\]\(#Exercise-(\d+)\): \S", closing)
    assert links == [(heading, heading.split()[1]) for heading in headings]


def anchors(path):
    """What JupyterLab calls the headings of a file: their text, with hyphens for spaces."""
    text = markdown(read(path)) if path.suffix == ".ipynb" else path.read_text()
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[`*]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [ROOT / "README.md", *NOTEBOOKS, *SOLUTIONS], ids=name)
def test_linked_headings_exist(path):
    """In this file or in another: JupyterLab finds them by exactly this text, nothing escaped."""
    text = markdown(read(path)) if path.suffix == ".ipynb" else path.read_text()
    link = r"\]\((?!https?:)([^)#\s]*)#((?:[^()\s]|\([^()\s]*\))+)\)"
    for target, heading in re.findall(link, text):
        linked = path.parent / target if target else path
        assert linked.exists(), f"{target} is linked and not there"
        assert heading in anchors(linked), f"{target}#{heading} is linked and not there"


def test_the_kit_names_sections_that_exist_and_have_executed_cells():
    named = [*KIT.CUTS.items(), *((number, [name]) for *_, number, name in KIT.ASKED)]
    for lecture in (lecture for lectures in KIT.ROUTES.values() for lecture in lectures):
        named += lecture.items()
    missing = [(k, name) for k, names in named for name in names or [] if not KIT.section(k, name)]
    assert not missing
    for _, question, _, number, name in KIT.ASKED:
        assert runs_code(KIT.chapters()[number], name), f"no cell answers '{question}'"


def runs_code(path, name):
    """Whether an executed code cell follows the heading before the next one of its level."""
    level = None
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                heading = re.match(r"(#+) (?:[\d.]+ )?(.+)", line)
                if heading and level and len(heading[1]) <= level:
                    return False
                if heading and heading[2].startswith(name):
                    level = len(heading[1])
        elif level and cell.execution_count:
            return True
    return False


@pytest.mark.parametrize("course", KIT.ROUTES)
def test_the_lectures_of_a_course_reach_images_and_fit(course):
    lectures = [
        {number: names or KIT.CUTS[number] for number, names in lecture.items()}
        for lecture in KIT.ROUTES[course]
    ]
    assert course.startswith({1: "one", 2: "two", 4: "four", 6: "six"}[len(lectures)])
    assert any(number >= "05" for lecture in lectures for number in lecture)
    for lecture in lectures:
        assert sum(KIT.class_minutes(*part) for part in lecture.items()) <= KIT.LECTURE


@pytest.mark.parametrize("number", KIT.CUTS)
def test_the_cut_of_a_chapter_fits_into_a_lecture(number):
    assert 30 <= KIT.class_minutes(number, KIT.CUTS[number]) <= KIT.LECTURE


def test_the_tables_of_00_are_up_to_date():
    stored = "\n".join(
        out["data"]["text/markdown"]
        for cell in code_cells(read(NOTEBOOKS[0]))
        for out in cell.outputs
        if "text/markdown" in out.get("data", {})
    )
    for table in [KIT.the_map(), KIT.routes(), KIT.cuts(), KIT.asked()]:
        assert table in stored, "run: python notebooks/execute.py 00_start_here.ipynb"


def test_every_chapter_is_in_the_map_and_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert list(KIT.QUESTIONS) == list(KIT.chapters())
    assert list(KIT.CUTS) == list(KIT.chapters())[1:]
    for number, path in KIT.chapters().items():
        assert f"](notebooks/{path.name}) | {KIT.QUESTIONS[number]} |" in readme


def test_00_looks_for_everything_that_the_project_needs():
    source = "\n".join(cell.source for cell in code_cells(read(NOTEBOOKS[0])))
    needs = ast.literal_eval(re.search(r"^NEEDS = (\{.*?^\})", source, re.MULTILINE | re.DOTALL)[1])
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    assert list(needs) == re.findall(r'"([\w-]+)>=', listed)
