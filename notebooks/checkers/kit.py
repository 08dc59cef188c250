"""The teaching kit of notebook 00, made from the notebooks themselves.

Titles, minutes, prerequisites and links are read from the chapters, so that nothing is typed twice.
A section is named here by its heading without the number.
"""

import json
import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
PACE = 130  # words that are read in a minute
IN_CLASS = 3  # minutes in class for each minute of reading, with figures, questions and running
EXERCISE = 10  # minutes in class for an exercise
LECTURE = 75  # the longest lecture

QUESTIONS = {
    "00": "what is in this series, and is everything installed?",
    "01": "where does the log-determinant come from?",
    "02": "how does a coupling layer work, and how good is a stack of them?",
    "03": "what does volume preservation cost, and when do deep flows lose precision?",
    "04": "which bugs does everybody meet, how do they look, and what finds them?",
    "05": "how does a density handle integers, and where does every term of bits/dim come from?",
    "06": "which half should a coupling see, and what is left at each scale?",
    "07": "what is in the paper's model, and what does a trained one know about photographs?",
    "08": "what does each ingredient buy, and how are faces steered through their latents?",
    "09": "what is a likelihood good for, and when does it mislead?",
    "10": "how does a flow learn from a formula, and how do you notice what it missed?",
    "11": "where do time and memory go, and what makes training faster and smaller?",
    "12": "how does a flow take orders, and what is a label worth?",
    "13": "what replaced Real NVP's parts, and what does each replacement buy?",
}

FORMULA = [
    "A stretched interval holds the same probability",
    "In the plane the stretch is a determinant",
]
COUPLING = [
    "One coupling layer, written out",
    "A flow is a chain of couplings",
    "The training loop, once by hand",
    "Both directions at once",
]
INTEGERS = [
    "Without noise there is no floor",
    "With noise it is a bound",
    "The logit",
    "The bits/dim ledger",
]

# Lecture by lecture: chapter -> sections, and exercises to do in class.
ROUTES = {
    "one lecture": [
        {
            "01": FORMULA,
            "02": [*COUPLING, "Exercise 1"],
            "06": ["Several scales", "Which scale holds what"],
        }
    ],
    "two lectures": [
        {
            "01": [*FORMULA, "Composition: the log-dets add"],
            "02": [*COUPLING, "Layer by layer", "Exercise 1"],
        },
        {
            "05": [*INTEGERS, "Exercise 1"],
            "06": ["Several scales", "Which scale holds what"],
            "08": ["From face to face"],
        },
    ],
    "four lectures": [{"01": None}, {"02": None}, {"05": None}, {"06": None}],
    "six lectures": [
        {"01": None},
        {"02": None},
        {"03": None},
        {"05": None},
        {"06": None},
        {
            "07": ["The paper's model, taken apart", "What each scale holds"],
            "08": ["From face to face", "Attribute vectors"],
            "09": ["The likelihood paradox"],
        },
    ],
}

# For each chapter what fits into one lecture.
CUTS = {
    "01": [
        *FORMULA,
        "The Jacobian of which map?",
        "Three Jacobians that are cheap",
        "Composition: the log-dets add",
        "Why maximum likelihood",
        "Exercise 3",
    ],
    "02": [
        *COUPLING,
        "Layer by layer",
        "Watching it learn",
        "The gap to the truth, in nats",
        "Exercise 1",
        "Exercise 2",
    ],
    "03": [
        "The data and its truth",
        "Three flows of one size",
        "What volume preservation must cost",
        "The measured gap",
        "How deep can a flow be?",
        "Exercise 1",
        "Exercise 2",
    ],
    "04": [
        "How to use `check_flow`",
        "A loss without end",
        "Too good to be true",
        "A plateau too high",
        "Good likelihood, bad samples",
        "Fewer than no bits",
        "Validation explodes",
        "ActNorm starts again",
        "Checklist",
        "Exercise 1",
        "Exercise 3",
    ],
    "05": [
        "From a pixel to a latent, and back",
        *INTEGERS,
        "A first flow",
        "Between two digits",
        "Exercise 1",
    ],
    "06": [
        "A convolution inside a coupling",
        "The squeeze, in two orders",
        "Several scales",
        "Which scale holds what",
        "Noise that is learned",
        "Exercise 1",
        "Exercise 3",
    ],
    "07": [
        "The paper's model, taken apart",
        "The ledger of one image",
        "Is it copying?",
        "What each scale holds",
        "There and back in 32 bits",
        "Exercise 1",
        "Exercise 3",
    ],
    "08": [
        "Four ingredients, each in a few lines",
        "What each of them contributes",
        "Reconstructions, exact",
        "Which scale holds what",
        "From face to face",
        "Attribute vectors",
        "Exercise 2",
    ],
    "09": [
        "A flow for tables",
        "Anomalies in tables",
        "The likelihood paradox",
        "Synthetic tables",
        "Exercise 1",
        "Exercise 2",
    ],
    "10": [
        "Densities without samples",
        "The reverse KL divergence",
        "Importance weights: from a fit to an answer",
        "Seeking modes, or covering them",
        "A posterior: Bayesian logistic regression",
        "Exercise 2",
    ],
    "11": [
        "Where the time goes",
        "One change at a time",
        "Memory",
        "Gradient accumulation",
        "Averaged weights",
        "Kill it and go on",
        "Exercise 1",
    ],
    "12": [
        "Where the label enters",
        "Reading, by Bayes' rule",
        "What a label buys, in bits",
        "Style and content",
        "A class that nobody showed it",
        "Exercise 1",
    ],
    "13": [
        "Glow: the permutation is learned",
        "Flow++: a curve in place of a line",
        "TarFlow: one token after the other",
        "Continuous flows, by flow matching",
        "The same budget for all",
        "Exercise 2",
    ],
}

# Question, where it was asked, and the chapter and section whose executed cell answers it.
ASKED = [
    (
        "Loss",
        "A loss of 7,000: is that normal?",
        "chrischute/real-nvp 6, 11",
        "05",
        "Is a loss of 1,500 nats normal?",
    ),
    ("Loss", "My loss is negative. A bug?", "FrEIA 128", "00", "May a loss be negative?"),
    (
        "Loss",
        "A positive log-det: is that right?",
        "chaiyujin/glow-pytorch 13",
        "05",
        "The bits/dim ledger",
    ),
    ("Loss", "How are bits/dim measured?", "nadavbh12/VQ-VAE 7", "05", "The bits/dim ledger"),
    (
        "Loss",
        "Where does the log-det of the dequantisation come from?",
        "uvadlc_notebooks 93",
        "05",
        "With noise it is a bound",
    ),
    (
        "Loss",
        "Where is the exponential?",
        "TinyVolt/normalizing-flows 1",
        "02",
        "One coupling layer, written out",
    ),
    (
        "Conventions",
        "Which way is forward?",
        "nflows 32, normflows 17, noise_flow 10",
        "01",
        "The Jacobian of which map?",
    ),
    (
        "Conventions",
        "Why does the code differ from the paper?",
        "keras-io 1339, chrischute/real-nvp 4",
        "07",
        "The paper, the authors' code, and this series",
    ),
    (
        "Conventions",
        "Do $s$ and $t$ take all $D$ inputs, or only those that pass?",
        "senya-ashukha/real-nvp-pytorch 1",
        "00",
        "Why is it called a coupling?",
    ),
    (
        "Conventions",
        "Why is it called a coupling?",
        "laurent-dinh/nice 1",
        "00",
        "Why is it called a coupling?",
    ),
    (
        "Instability",
        "NaN with many layers or dimensions",
        "normflows 73",
        "04",
        "Scales without a bound",
    ),
    (
        "Instability",
        "Training is fine, validation is 8e27",
        "distrax 203",
        "04",
        "Validation explodes",
    ),
    (
        "Instability",
        "62,053 bits/dim",
        "flows_ood 5",
        "04",
        "Validation explodes",
    ),
    (
        "Instability",
        "Affine couplings give NaN",
        "rosinality/glow-pytorch 25",
        "04",
        "Scales without a bound",
    ),
    ("Instability", "A loss of 1e24", "survae_flows 20", "04", "Scales without a bound"),
    (
        "Instability",
        "NaN only when sampling",
        "SRFlow 2",
        "00",
        "Why is there NaN only when I sample?",
    ),
    ("Instability", "NaN on CelebA", "glow-realnvp-tutorial 3", "04", "Scales without a bound"),
    (
        "Instability",
        "NaN for one seed of several",
        "y0ast/Glow-PyTorch 1",
        "04",
        "Spikes and a plateau",
    ),
    (
        "State",
        "ActNorm starts anew after loading",
        "nflows 4, FrEIA 33, rosinality/glow-pytorch 6",
        "04",
        "ActNorm starts again",
    ),
    ("Examples", "Any toy example?", "pyro 1992", "02", "The training loop, once by hand"),
    (
        "Examples",
        "A conditional flow",
        "FrEIA 119, 163, normflows 18",
        "10",
        "A conditional flow on the sinusoid",
    ),
    ("Examples", "A multi-scale flow with its log-det", "normflows 33, 36", "06", "Several scales"),
    (
        "Data types",
        "Integers and categories in a column",
        "nflows 74, normflows 25",
        "09",
        "Columns of categories",
    ),
    (
        "Sampling",
        "Which temperature?",
        "chaiyujin/glow-pytorch 15, 35",
        "07",
        "Samples at several temperatures",
    ),
    (
        "Sampling",
        "The attribute vector of glasses is bad",
        "openai/glow 42",
        "08",
        "Attribute vectors",
    ),
    ("Compute", "How long must it train?", "openai/glow 14, 37", "11", "The runs that are shipped"),
    ("Using it", "How do I detect anomalies?", "pytorch-ts 36", "09", "Anomalies in tables"),
    (
        "Using it",
        "The log-probability of one sample, after flow matching",
        "torchcfm 88, 157",
        "13",
        "Continuous flows, by flow matching",
    ),
    (
        "Using it",
        "Why $z^2$ as anomaly score, without the Jacobian?",
        "cs-flow 18",
        "00",
        "May I drop the Jacobian from a score?",
    ),
    ("Access", "Where are trained weights?", "flow_matching 36", "00", "A taste, in 60 seconds"),
    (
        "Access",
        "How do I install it? Is there a devcontainer?",
        "handson-ml3 94",
        "00",
        "Is everything here?",
    ),
    (
        "Access",
        "CelebA cannot be downloaded",
        "pytorch/vision 1920, 5705, 8268",
        "08",
        "Faces, with and without CelebA",
    ),
    ("Access", "Sliders do nothing in Colab", "NeuroAI_Course 451", "00", "How to use sliders"),
]


def chapters():
    """The chapters' numbers and files, in order."""
    return {path.name[:2]: path for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}


@cache
def text(path):
    """A notebook's markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def words(text):
    """Words to read: formulas, code and the targets of links are none."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$|\]\([^)]*\)", " ", text)
    return len(re.findall(r"\w[\w'’.-]*", text))


def title(number):
    return re.match(r"# (.+)", text(chapters()[number]))[1]


def link(number, label=None, heading=None):
    """A link to a chapter, or to a heading of it as JupyterLab names it."""
    anchor = "#" + re.sub(r"[`*]", "", heading).replace(" ", "-") if heading else ""
    target = anchor if number == "00" and anchor else chapters()[number].name + anchor
    return f"[{label or title(number)}]({target})"


def section(number, name):
    """The heading with its number, and the text down to the next heading that is no lower; None
    where the chapter has no such section."""
    lines = text(chapters()[number]).splitlines()
    for i, line in enumerate(lines):
        heading = re.match(r"(#+) ((?:[\d.]+ )?(.+?)) *$", line)
        if heading and (
            name in heading.groups() or re.match(re.escape(name) + r"(:| \()", heading[3])
        ):
            ends = (
                k
                for k in range(i + 1, len(lines))
                if re.match(rf"#{{1,{len(heading[1])}}} ", lines[k])
            )
            return heading[2], "\n".join(lines[i : next(ends, len(lines))])
    return None


def to_read_and_run(number):
    """The minutes of the chapter's Time line."""
    line = re.search(
        r"^\*\*Time\*\* about (\d+) minutes to read, (\d+) to run$",
        text(chapters()[number]),
        re.MULTILINE,
    )
    return line.groups() if line else ("", "")


def builds_on(number):
    """The chapters that the opening's Prerequisites name."""
    line = re.search(r"^\*\*Prerequisites\*\*(.*)$", text(chapters()[number]), re.MULTILINE)[1]
    line = re.sub(r"\]\([^)]*\)", "", line)  # the targets of links
    line = re.sub(r"([Ss]ection|[Cc]ase|[Ee]xercise)s? \d+((, | and | to )\d+)*", "", line)
    return sorted({*re.findall(r"\b\d\d\b", line)} & {*chapters()} - {number})


def table(*rows):
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def the_map():
    """What each chapter asks, what it builds on, and its minutes."""
    rows = [("notebook", "question", "builds on", "to read", "to run")]
    for number in chapters():
        needs = ", ".join(link(other, other) for other in builds_on(number)) or "–"
        minutes = [f"{m} min" if m else "" for m in to_read_and_run(number)]
        rows.append((link(number), QUESTIONS[number], needs, *minutes))
    return table(*rows)


def class_minutes(number, names):
    """What the sections take in class, and the exercises."""
    minutes = 0
    for name in names:
        found = section(number, name)
        if name.startswith("Exercise"):
            minutes += EXERCISE
        elif found:
            minutes += IN_CLASS * words(found[1]) / PACE
    return minutes


def part(number, names):
    found = [(name, section(number, name)) for name in names]
    sections = [link(number, name, s[0]) for name, s in found if s]
    return f"**{link(number)}**: " + "; ".join(sections)


def routes():
    """Courses of one to six lectures: what to show, and for how long."""
    rows = [("course", "lecture", "what to show", "minutes")]
    for course, lectures in ROUTES.items():
        for i, lecture in enumerate(lectures, start=1):
            whole = {number: names or CUTS[number] for number, names in lecture.items()}
            shown = [
                part(number, names) if names else f"{link(number)}, the cut below"
                for number, names in lecture.items()
            ]
            minutes = sum(class_minutes(*item) for item in whole.items())
            name = f"**{course}**" if i == 1 else ""
            rows.append((name, str(i), "<br>".join(shown), f"{minutes:.0f}"))
    return table(*rows)


def cuts():
    """For each chapter the sections that fit into one lecture."""
    rows = [("sections for one lecture", "minutes")]
    for number, names in CUTS.items():
        rows.append((part(number, names), f"{class_minutes(number, names):.0f}"))
    return table(*rows)


def asked():
    """The questions, each linked to the section whose cells answer it."""
    rows, before = [("", "question", "asked in", "answered in")], ""
    for topic, question, where, number, name in ASKED:
        found = section(number, name)
        answer = link(number, f"{number} · {name}", found[0]) if found else ""
        rows.append((f"**{topic}**" if topic != before else "", question, where, answer))
        before = topic
    return table(*rows)
