"""The drawings of the series: `python notebooks/media/drawings.py` writes them beside this file.

One function per drawing, on a few primitives. Data are blue, networks and what they compute orange,
latents green, noise and context pink. Of two shades the light one passes through a coupling, the
strong one is changed. In a text, *x* is a variable, _b or _{k-1} a subscript, ^{-1} a superscript.
"""

import math
import re
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent

# Ink, secondary ink and paper; then, for every colour, its line, light fill and strong fill.
LIGHT = {
    "ink": ("#1f2328", "#57606a", "#ffffff"),
    "data": ("#0072B2", "#E8F3FA", "#A3CFEA"),
    "model": ("#D55E00", "#FDEEE3", "#F6BE93"),
    "latent": ("#009E73", "#E3F5EF", "#8FD6BE"),
    "noise": ("#AA4A85", "#FAEEF5", "#E6B8D3"),
    "plain": ("#57606a", "#ffffff", "#d8dee4"),
}
DARK = {
    "ink": ("#e6edf3", "#a9b4bf", "#161a1f"),
    "data": ("#56B4E9", "#10293a", "#1d5f8c"),
    "model": ("#F5955A", "#3a2212", "#914a14"),
    "latent": ("#3DCBA0", "#0e3027", "#136b55"),
    "noise": ("#E39CC4", "#37202d", "#7f4064"),
    "plain": ("#a9b4bf", "#161a1f", "#3a424b"),
}


def rules(palette):
    """A palette as style rules."""
    ink, quiet, paper = palette["ink"]
    yield f"text{{fill:{ink}}}.quiet{{fill:{quiet}}}.paper{{fill:{paper}}}"
    for name, (line, light, strong) in list(palette.items())[1:]:
        yield f".{name}{{fill:{light};stroke:{line}}}.strong.{name}{{fill:{strong}}}"
        yield f".head.{name}{{fill:{line}}}text.{name}{{fill:{line};stroke:none}}"


STYLE = "\n".join(
    [
        "text{font:15px Helvetica,Arial,'Liberation Sans',sans-serif}",
        ".v{font-family:'STIX Two Text','Times New Roman','Liberation Serif',serif;"
        "font-style:italic;font-size:1.12em}.b{font-weight:bold}",
        "rect,circle,path{stroke-width:1.5}",
        *rules(LIGHT),
        "@media (prefers-color-scheme: dark){",
        *rules(DARK),
        "}",
        "path.wire{fill:none}.thin{stroke-width:1}.thick{stroke-width:3}.paper{stroke:none}",
        "path.rule{stroke-width:1;stroke-dasharray:5 4}path.sign{stroke-linecap:round}",
    ]
)


def number(value):
    """A coordinate, short and the same on every machine."""
    return f"{value:.1f}".removesuffix(".0").replace("-0", "0" if abs(value) < 0.05 else "-0")


def spans(text):
    """A text with its variables in italics, its subscripts and its superscripts as SVG."""
    pieces, shift = [], 0
    for token in re.findall(r"\*[^*]+\*|_\{[^}]+\}|\^\{[^}]+\}|_\w|[^*_^]+", text):
        raised = {"_": 4, "^": -6}.get(token[0], 0)
        words = token.strip("_^{}") if raised else token.strip("*")
        look = ' class="v"' if token[0] == "*" or (raised and re.search("[a-zA-Z]", words)) else ""
        if raised != shift:
            look += f' dy="{raised - shift}"'
        if raised:
            look += ' style="font-size:13px"'
        pieces.append(f"<tspan{look}>{escape(words)}</tspan>" if look else escape(words))
        shift = raised
    return "".join(pieces)


class Drawing:
    """A canvas 720 wide. Colours are classes: "data", "strong model", ..."""

    def __init__(self, height, title, description):
        self.height, self.title, self.description, self.parts = height, title, description, []

    def text(self, x, y, text, size=15, anchor="middle", look=""):
        """One line, y its middle."""
        place = f'x="{number(x)}" y="{number(y + 0.35 * size)}" text-anchor="{anchor}"'
        style = f' style="font-size:{size}px"' if size != 15 else ""
        look = f' class="{look}"' if look else ""
        self.parts.append(f"<text {place}{look}{style}>{spans(text)}</text>")

    def note(self, x, y, text, anchor="middle"):
        self.text(x, y, text, 14, anchor, "quiet")

    def box(self, x, y, width, height, colour, text="", size=15, corner=7):
        """A box around (x, y), with lines of text."""
        place = f'x="{number(x - width / 2)}" y="{number(y - height / 2)}"'
        place += f' width="{number(width)}" height="{number(height)}" rx="{corner}"'
        self.parts.append(f'<rect {place} class="{colour}"/>')
        lines = text.split("\n") if text else []
        for i, line in enumerate(lines):
            self.text(x, y + (i - (len(lines) - 1) / 2) * 1.3 * size, line, size)

    def path(self, points, colour="plain", closed=False, look="wire"):
        steps = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.parts.append(f'<path class="{look} {colour}" d="M{steps}{"Z" if closed else ""}"/>')

    def arrow(self, *points, colour="plain", look="wire"):
        """A line through the points, with a head at the last."""
        (x0, y0), (x, y) = points[-2:]
        length = math.hypot(x - x0, y - y0)
        along, across = (
            ((x - x0) / length, (y - y0) / length),
            ((y0 - y) / length, (x - x0) / length),
        )
        corners = [
            (x - 9 * along[0] + side * 4.5 * across[0], y - 9 * along[1] + side * 4.5 * across[1])
            for side in (1, -1)
        ]
        self.path([*points[:-1], (x - 7 * along[0], y - 7 * along[1])], colour, look=look)
        self.path([(x, y), *corners], colour, closed=True, look="head thin")

    def dot(self, x, y, colour="plain", radius=3.5):
        self.parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{radius}" class="head {colour}"/>'
        )

    def operator(self, x, y, sign, colour="model"):
        """A circle with +, − or × in it."""
        self.parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="13" class="strong {colour}"/>'
        )
        arms = {
            "+": [(6, 0), (0, 6)],
            "−": [(6, 0)],
            "×": [(4.5, 4.5), (4.5, -4.5)],
        }[sign]
        for dx, dy in arms:
            self.path([(x - dx, y - dy), (x + dx, y + dy)], "plain", look="wire sign")

    def board(self, x, y, rows, cell, colour, size=14):
        """Cells from the corner (x, y) on; `colour(i, j)` is the class of row i, column j."""
        for i, row in enumerate(rows):
            for j, text in enumerate(row):
                middle = x + (j + 0.5) * cell, y + (i + 0.5) * cell
                self.box(*middle, cell, cell, colour(i, j), str(text), size, corner=0)

    def svg(self):
        head = '<svg xmlns="http://www.w3.org/2000/svg" role="img" width="720" '
        head += f'height="{self.height}" viewBox="0 0 720 {self.height}" aria-labelledby="t d">'
        said = f'<title id="t">{escape(self.title)}</title>\n'
        said += f'<desc id="d">{escape(self.description)}</desc>'
        paper = f'<rect width="720" height="{self.height}" rx="8" class="paper"/>'
        style = f"<style>\n{STYLE}\n</style>"
        return "\n".join([head, said, style, paper, *self.parts, "</svg>"]) + "\n"


def even(i, j):
    """Where a checkerboard passes: `flowlib.masks.checkerboard`."""
    return (i + j) % 2 == 0


def half(d, left, forward, context=False):
    """One direction of a coupling, data on its left, latents on its right."""
    a, multiply, middle, add, b = (left + v for v in (44, 130, 178, 226, 312))
    title = "forward:  *z* = *f*(*x*)" if forward else "inverse:  *x* = *f*^{−1}(*z*)"
    d.text(middle, 30, title, 17, look="b")
    for y, part, shade in [(84, "a", ""), (222, "b", "strong ")]:
        d.box(a, y, 50, 40, shade + "data", f"*x*_{part}", 18)
        d.box(b, y, 50, 40, shade + "latent", f"*z*_{part}", 18)
    stops = [a + 25, multiply - 13, multiply + 13, add - 13, add + 13, b - 25]
    if not forward:
        stops.reverse()
    d.arrow((stops[0], 84), (stops[-1], 84))
    d.dot(middle, 84)
    d.arrow((middle, 84), (middle, 130))
    d.box(middle, 150, 140, 40, "model", "network")
    if context:
        d.box(a, 150, 66, 36, "strong noise", "context", 14)
        d.arrow((a + 33, 150), (middle - 70, 150), colour="noise")
    for x, label, side, anchor in [
        (multiply, "exp(*s*)" if forward else "exp(−*s*)", -8, "end"),
        (add, "*t*", 8, "start"),
    ]:
        d.arrow((x, 170), (x, 209), colour="model")
        d.text(x + side, 188, label, 16, anchor)
    for start, stop in zip(stops[::2], stops[1::2]):
        d.arrow((start, 222), (stop, 222))
    d.operator(multiply, 222, "×")
    d.operator(add, 222, "+" if forward else "−")
    return middle


def coupling():
    d = Drawing(
        342,
        "A coupling, forward and inverse",
        "Forward: x_a passes through as z_a and is the network's input; the network gives s and t; "
        "x_b is multiplied by exp(s), then t is added, which gives z_b. Inverse: the same network "
        "is given z_a, which is x_a; t is subtracted from z_b, then it is multiplied by exp(-s).",
    )
    middle = half(d, 0, forward=True)
    d.text(middle, 268, "*z*_a = *x*_a", 17)
    d.text(middle, 294, "*z*_b = *x*_b · exp(*s*(*x*_a)) + *t*(*x*_a)", 17)
    d.text(middle, 321, "log-det = Σ *s*(*x*_a)", 17)
    d.path([(361, 20), (361, 324)], look="wire rule")
    middle = half(d, 364, forward=False)
    d.text(middle, 268, "*x*_a = *z*_a", 17)
    d.text(middle, 294, "*x*_b = (*z*_b − *t*(*z*_a)) · exp(−*s*(*z*_a))", 17)
    d.text(middle, 321, "log-det = −Σ *s*(*z*_a)", 17)
    return d


def conditional_coupling():
    d = Drawing(
        316,
        "A conditional coupling, forward and inverse",
        "A coupling whose network has a second input: the context joins x_a on the way forward and "
        "z_a, which is the same, on the way back. The context itself is not changed, and the "
        "formulas and log-determinants are those of any coupling.",
    )
    middle = half(d, 0, forward=True, context=True)
    d.text(middle, 268, "*s*, *t* = network(*x*_a, context)", 17)
    d.text(middle, 295, "log-det = Σ *s*", 17)
    d.path([(361, 20), (361, 298)], look="wire rule")
    middle = half(d, 364, forward=False, context=True)
    d.text(middle, 268, "*s*, *t* = network(*z*_a, context)", 17)
    d.text(middle, 295, "log-det = −Σ *s*", 17)
    return d


def split_join():
    d = Drawing(
        344,
        "A mask splits x and joins it again",
        "A mask of four entries, true, false, true, false, sends x_1 and x_3 to x_a, and x_2 and "
        "x_4 to x_b. x_a passes through as z_a and is given to the network; s and t, which it "
        "computes, change x_b into z_b. Joining puts the entries of z_a and z_b back in place.",
    )
    passes, cell, top, gap = [True, False, True, False], 40, 72, 140
    where = {0: top, 1: top + gap, 2: top + cell, 3: top + gap + cell}  # in the parts, upper edge
    for i, a in enumerate(passes):
        y, shade = top + (gap - 2 * cell) / 2 + (i + 0.5) * cell, "" if a else "strong "
        d.box(56, y, 64, cell, shade + "plain", str(a), 14, corner=0)
        d.box(124, y, 44, cell, shade + "data", f"*x*_{i + 1}", 17, corner=0)
        d.box(652, y, 44, cell, shade + "latent", f"*z*_{i + 1}", 17, corner=0)
        part = where[i] + cell / 2
        d.box(262, part, 44, cell, shade + "data", f"*x*_{i + 1}", 17, corner=0)
        d.box(514, part, 44, cell, shade + "latent", f"*z*_{i + 1}", 17, corner=0)
        d.arrow((146, y), (240, part), colour="data")
        d.arrow((536, part), (630, y), colour="latent")
    a, b, label = top + cell, top + gap + cell, top + 8
    d.text(56, label, "mask *m*", 16)
    d.text(124, label, "*x*", 18)
    d.text(652, label, "*z*", 18)
    d.text(193, 28, "split", 16, look="b")
    d.text(583, 28, "join", 16, look="b")
    for x, name in [(262, "x"), (514, "z")]:
        d.text(x, top - 20, f"*{name}*_a", 18)
        d.text(x, b + cell + 20, f"*{name}*_b", 18)
    d.arrow((284, a), (492, a))
    d.note(388, a - 16, "passes through")
    d.dot(388, a)
    d.arrow((388, a), (388, a + 36))
    d.box(388, a + 55, 100, 38, "model", "network")
    d.arrow((388, a + 74), (388, b - 19), colour="model")
    d.text(396, b - 40, "*s*, *t*", 16, "start")
    d.arrow((284, b), (325, b))
    d.box(388, b, 126, 38, "strong model", "× exp(*s*),  + *t*")
    d.arrow((451, b), (492, b))
    d.note(388, b + 34, "changes")
    return d


def to_latent(x_a, x_b):
    """The coupling that `two_directions` draws."""
    s, t = 0.35 + 0.3 * x_a, 0.5 * x_a**2 - 0.7
    return x_a, x_b * math.exp(s) + t


def to_data(z_a, z_b):
    s, t = 0.35 + 0.3 * z_a, 0.5 * z_a**2 - 0.7
    return z_a, (z_b - t) * math.exp(-s)


def two_directions():
    d = Drawing(
        402,
        "The two directions of a flow",
        "Left, data x on a bent shape; right, the same points as latents z on circles, a standard "
        "normal. The arrow f leads from data to latents, with log-determinant l; the arrow f "
        "inverse leads back, with log-determinant minus l. A small square in the data becomes a "
        "tilted patch with another area in the latents.",
    )
    unit, y0 = 46, 176
    at_data = lambda p: (136 + unit * p[0], y0 - unit * p[1])  # noqa: E731
    at_latent = lambda p: (584 + unit * p[0], y0 - unit * p[1])  # noqa: E731
    angles = [2 * math.pi * i / 72 for i in range(72)]
    for radius in (2, 1):
        circle = [(radius * math.cos(a), radius * math.sin(a)) for a in angles]
        d.path([at_latent(p) for p in circle], "latent", True, "thin")
        d.path([at_data(to_data(*p)) for p in circle], "data", True, "thin")
    edge = [i / 6 for i in range(6)]
    square = [(e, 0) for e in edge] + [(1, e) for e in edge]
    square += [(1 - e, 1) for e in edge] + [(0, 1 - e) for e in edge]
    patch = [(0.6 + 0.6 * a, -0.4 + 0.6 * b) for a, b in square]
    d.path([at_data(p) for p in patch], "model", True, "strong")
    d.path([at_latent(to_latent(*p)) for p in patch], "model", True, "strong")
    for i in range(56):  # spread as a normal is, without chance
        radius, angle = math.sqrt(-2 * math.log(1 - (i + 0.5) / 58)), 2.39996 * i
        z = radius * math.cos(angle), radius * math.sin(angle)
        d.dot(*at_latent(z), "latent", 2)
        d.dot(*at_data(to_data(*z)), "data", 2)
    d.text(136, 26, "data  *x*", 17, look="b")
    d.text(584, 26, "latents  *z*", 17, look="b")
    d.text(360, 80, "*z* = *f*(*x*)", 18)
    d.arrow((272, 102), (448, 102), colour="model")
    d.text(360, 126, "log |det ∂*f*/∂*x*| = *ℓ*", 16)
    d.text(360, 184, "*x* = *f*^{−1}(*z*)", 18)
    d.arrow((448, 206), (272, 206), colour="model")
    d.text(360, 232, "log |det ∂*f*^{−1}/∂*z*| = −*ℓ*", 16)
    d.note(360, 278, "a small area: × exp(*ℓ*)")
    d.text(136, 316, "*x* ~ *p*_X", 17)
    d.text(584, 316, "*z* ~ *N*(0, *I*)", 17)
    d.path([(20, 336), (700, 336)], look="wire rule")
    d.text(24, 358, "density of data:", 15, "start", "b")
    d.text(160, 358, "log *p*_X(*x*) = log *p*_Z(*f*(*x*)) + log |det ∂*f*/∂*x*|", 16, "start")
    d.text(24, 383, "new data:", 15, "start", "b")
    d.text(160, 383, "draw *z* from *N*(0, *I*), then compute *x* = *f*^{−1}(*z*)", 16, "start")
    return d


def chain():
    d = Drawing(
        290,
        "A chain of bijections",
        "Forward, to the right: x goes through f_1, f_2 and so on to f_K and becomes z. Every "
        "layer adds its log-determinant, and the sum is that of the whole. Backwards, to the "
        "left, the inverses act in the opposite order and every log-determinant changes sign.",
    )
    states = [("*x*", 44, "data"), ("*x*_1", 222, "plain"), ("*x*_2", 394, "plain")]
    layers = [("1", 136), ("2", 308), ("K", 560)]
    for y, back in [(44, False), (216, True)]:
        places = [(473, 15), (674, 23)]  # middle and half width
        d.text(473, y, "…", 20)
        d.box(674, y, 46, 38, "latent", "*z*", 18)
        for label, x, colour in states:
            d.box(x, y, 46, 38, colour, label, 18)
            places.append((x, 23))
        for k, x in layers:
            d.box(x, y, 62, 42, "strong model", f"*f*_{k}" + "^{−1}" * back, 18)
            d.arrow(
                *[(x, y - 21), (x, y - 54)] if back else [(x, y + 21), (x, y + 54)], colour="model"
            )
            d.text(x, 145 if back else 115, f"{'−' * back}*ℓ*_{k}", 18)
            places.append((x, 31))
        places.sort()
        for (a, half_a), (b, half_b) in zip(places, places[1:]):
            ends = (a + half_a, y), (b - half_b, y)
            d.arrow(*(reversed(ends) if back else ends))
        line = 145 if back else 115
        for x, sign in [(222, "+"), (394, "+"), (480, "…  +"), (600, "=")]:
            d.text(x, line, sign, 17)
        d.text(44, line, "log-det", 15)
        d.text(662, line, "log-det of *f*" + "^{−1}" * back, 15)
    d.note(360, 268, "*ℓ*_k = log |det ∂*f*_k/∂*x*_{k−1}|,   *x*_0 = *x*,   *x*_K = *z*")
    return d


def preprocessing():
    d = Drawing(
        350,
        "The preprocessing of images",
        "A pixel on its way to the flow: the integer 37 gets noise u = 0.62, is divided by 256 to "
        "0.147 in the unit interval, and the logit takes it to a number on the real line. Log-"
        "determinants: 0 for the noise, minus D log 256 for the scaling, and the sum of "
        "log(1 - 2 alpha) - log p - log(1 - p) for the logit.",
    )
    pixel, u, alpha = 37, 0.62, 0.05
    y = (pixel + u) / 256
    p = alpha + (1 - 2 * alpha) * y
    v, end = math.log(p / (1 - p)), math.log((1 - alpha) / alpha)
    centres = [86, 270, 452, 634]
    names = ["integers  *x*", "*x* + *u*", "*y* = (*x* + *u*) / 256", "logit(*p*)"]
    spaces = ["0, 1, …, 255", "0 to 256", "0 to 1", f"−{end:.2f} to {end:.2f}"]
    values = [f"{pixel}", f"{pixel + u:.2f}", f"{y:.3f}", f"−{-v:.2f}"]
    colours = ["data", "noise", "data", "data"]
    for x, name, space, value, colour in zip(centres, names, spaces, values, colours):
        d.text(x, 28, name, 16, look="b")
        d.box(x, 72, 76, 38, colour, value, 18)
        d.path([(x - 66, 142), (x + 66, 142)], "plain")
        d.note(x, 182, space)
    for k in range(5):  # integers 35 ... 39, then their cells
        for x in centres[:2]:
            tick = x - 56 + 28 * k
            d.path([(tick, 137), (tick, 147)], "plain")
            d.text(tick, 159, str(35 + k), 13, look="quiet")
        d.dot(centres[0] - 56 + 28 * k, 142, "data", 5 if k == 2 else 3)
    d.box(centres[1] + 14, 134, 28, 15, "strong noise", corner=0)
    d.dot(centres[1] + 28 * u, 142, "noise", 4.5)
    for x, ends in [(centres[2], ("0", "1")), (centres[3], ("−3", "3"))]:
        for side, label in zip((-56, 56), ends):
            d.path([(x + side, 137), (x + side, 147)], "plain")
            d.text(x + side, 159, label, 13, look="quiet")
    d.dot(centres[2] - 56 + 112 * y, 142, "data", 4.5)
    d.dot(centres[3] + 56 * v / 3, 142, "data", 4.5)
    steps = ["+ *u*", "÷ 256", "logit"]
    for a, b, step in zip(centres, centres[1:], steps):
        d.arrow((a + 38, 72), (b - 38, 72))
        d.text((a + b) / 2, 57, step, 15)
    d.path([(20, 204), (700, 204)], "plain", look="wire rule")
    d.text(20, 226, "log-det", 15, "start", "b")
    middles = [(a + b) / 2 for a, b in zip(centres, centres[1:])]
    for x, formula in zip(middles, ["0", "−*D* log 256", ""]):
        d.text(x, 226, formula, 16)
    d.text(700, 226, "Σ [log(1−2*α*) − log *p* − log(1−*p*)]", 16, "end")
    d.text(20, 254, "layer", 15, "start", "b")
    d.text(sum(middles[:2]) / 2, 254, "Dequantize", 15)
    d.text(589, 254, "Logit", 15)
    for line, note in enumerate(
        [
            "noise *u* ~ U[0, 1), fresh for every pixel and every time: an integer becomes a cell",
            "*p* = *α* + (1 − 2*α*) *y*,  *α* = 0.05, so that the logit is finite at 0 and at 1",
            "back: sigmoid, undo *α*, × 256, round down; the noise is gone",
        ]
    ):
        d.note(20, 286 + 22 * line, note, "start")
    return d


def image_couplings():
    d = Drawing(
        484,
        "A checkerboard coupling and a channel coupling",
        "Above, a checkerboard coupling on 4 by 4 pixels: the network sees the light fields, zeros "
        "in place of the strong ones, and the mask; s and t that it gives are used on the strong "
        "fields only. Below, a channel coupling: the first half of the channels passes through and "
        "is all that the network sees; the second half is changed.",
    )
    cell, lane, small, top = 25, 202, 22, 306
    blank = [[""] * 4 for _ in range(4)]
    zeros = [["" if even(i, j) else "0" for j in range(4)] for i in range(4)]
    ones = [["1" if even(i, j) else "0" for j in range(4)] for i in range(4)]
    shade = lambda colour: lambda i, j: colour if even(i, j) else f"strong {colour}"  # noqa: E731
    d.text(20, 26, "checkerboard", 16, "start", "b")
    d.board(24, lane - 50, blank, cell, shade("data"))
    d.text(74, lane + 66, "*x*", 18)
    d.arrow((74, lane - 56), (74, 78), (190, 78))
    d.board(218, 50, ones, cell, lambda i, j: "plain", 13)
    d.board(196, 28, zeros, cell, lambda i, j: "data" if even(i, j) else "plain", 13)
    d.text(257, 164, "*x*_a, and the mask", 15)
    d.arrow((324, 86), (366, 86))
    d.box(416, 86, 100, 38, "model", "network")
    for x, sign, name, side, anchor in [
        (400, "×", "exp(*s*)", -8, "end"),
        (432, "+", "*t*", 8, "start"),
    ]:
        d.arrow((x, 105), (x, lane - 13), colour="model")
        d.text(x + side, 136, name, 16, anchor)
        d.operator(x, lane, sign)
    d.arrow((130, lane), (387, lane))
    d.arrow((445, lane), (582, lane))
    d.note(258, lane + 18, "all of *x*; at *x*_a, *s* = *t* = 0")
    d.board(588, lane - 50, blank, cell, shade("latent"))
    d.text(638, lane + 66, "*z*", 18)
    d.path([(20, 286), (700, 286)], look="wire rule")

    def stack(x, y, colour, strong):
        for k, look in enumerate(strong):
            look = f"strong {colour}" if look else colour
            d.board(x + 12 * k, y + 12 * k, [[""] * 2] * 2, small, lambda i, j: look)  # noqa: B023

    d.text(20, top + 4, "channels", 16, "start", "b")
    stack(28, top + 44, "data", [False, False, True, True])
    d.text(68, top + 146, "*x*", 18)
    d.arrow((116, top + 76), (158, top + 51))
    d.arrow((116, top + 96), (158, top + 121))
    for x, name, colour in [(196, "x", "data"), (588, "z", "latent")]:
        stack(x, top + 12, colour, [False, False])
        stack(x, top + 102, colour, [True, True])
        side, anchor = (-8, "end") if name == "x" else (66, "start")
        d.text(x + side, top + 39, f"*{name}*_a", 18, anchor)
        d.text(x + side, top + 129, f"*{name}*_b", 18, anchor)
    d.arrow((258, top + 38), (582, top + 38))
    d.dot(416, top + 38)
    d.arrow((416, top + 38), (416, top + 56))
    d.box(416, top + 73, 100, 34, "model", "network")
    for x, sign in [(400, "×"), (432, "+")]:
        d.arrow((x, top + 90), (x, top + 116), colour="model")
        d.operator(x, top + 129, sign)
    d.arrow((258, top + 129), (387, top + 129))
    d.arrow((445, top + 129), (582, top + 129))
    d.text(392, top + 102, "exp(*s*)", 16, "end")
    d.text(440, top + 102, "*t*", 16, "start")
    return d


# The pixels of a block of 2 x 2, (row, column), in the order in which they become channels.
ORDERS = {
    "channel": [(0, 0), (0, 1), (1, 0), (1, 1)],
    "checkerboard": [(0, 0), (1, 1), (0, 1), (1, 0)],
}


def squeezed(order):
    """A board of 4 x 4, numbered row by row from 0, as four channels of 2 x 2."""
    return [
        [[4 * (2 * i + row) + 2 * j + column for j in range(2)] for i in range(2)]
        for row, column in ORDERS[order]
    ]


def squeeze():
    d = Drawing(
        344,
        "The squeeze in its two orders",
        "A board of 4 by 4 pixels, numbered 0 to 15 row by row, becomes four channels of 2 by 2. "
        + " ".join(
            f"Order {order}: channels "
            + ", ".join(str([*c[0], *c[1]]) for c in squeezed(order))
            + "."
            for order in ORDERS
        )
        + " In the checkerboard order the first two channels are one colour of the checkerboard, "
        "and the last two, which are factored out, the other.",
    )
    cell, top = 40, 106
    shade = lambda n: "data" if even(n // 4, n % 4) else "strong data"  # noqa: E731
    numbers = [[4 * i + j for j in range(4)] for i in range(4)]
    d.text(108, top - 26, "1 × 4 × 4", 16, look="b")
    d.board(28, top, numbers, cell, lambda i, j: shade(4 * i + j), 15)
    for x in (28, 108):  # the blocks
        for y in (top, top + 80):
            d.path([(x, y), (x + 80, y), (x + 80, y + 80), (x, y + 80)], "data", True, "wire thick")
    d.text(366, 20, "first half", 15)
    d.text(596, 20, "second half", 15)
    for y, order, meaning in [
        (70, "channel", "each block row by row"),
        (226, "checkerboard", "one colour, then the other"),
    ]:
        d.arrow((200, top + 80), (258, y + 40))
        d.text(268, y - 22, f'Squeeze("{order}")', 15, "start", "b")
        d.note(690, y - 22, meaning, "end")
        for k, channel in enumerate(squeezed(order)):
            x = 268 + 112 * k + (14 if k > 1 else 0)
            d.board(x, y, channel, cell, lambda i, j, c=channel: shade(c[i][j]), 15)
            d.note(x + 40, y + 95, f"channel {k}")
        d.path([(481, y - 6), (481, y + 100)], look="wire rule")
    return d


def factor_out():
    d = Drawing(
        352,
        "Factoring out: half of the channels leave at each scale",
        "An image of 3 by 32 by 32 goes through three scales. After the first, 6 of 12 channels of "
        "16 by 16 leave as z_1, half of all numbers; the other 6 go on. After the second, 12 of 24 "
        "channels of 8 by 8 leave as z_2, a quarter. The third scale keeps its 12 channels: z_3. "
        "The scales but the last are three checkerboard couplings, squeeze, three channel "
        "couplings, un-squeeze, and a squeeze in checkerboard order; the last is four checkerboard "
        "couplings.",
    )
    lane, out = 74, 204
    d.box(54, lane + 10, 64, 44, "data", "*x*", 18)
    d.note(54, 34, "3 × 32 × 32")
    for name, x in [("scale 1", 152), ("scale 2", 382), ("scale 3", 612)]:
        d.box(x, lane + 10, 82, 64, "strong model", name)
    d.arrow((86, lane + 10), (111, lane + 10))
    for left, x, stays in [(193, 268, "6 × 16 × 16"), (423, 498, "12 × 8 × 8")]:
        d.arrow((left, lane + 10), (x - 30, lane + 10))
        d.box(x, lane - 6, 60, 32, "data", "goes on", 14, corner=0)
        d.box(x, lane + 26, 60, 32, "strong latent", "leaves", 14, corner=0)
        d.note(x, 34, stays)
        d.arrow((x + 30, lane - 6), (x + 73, lane - 6))
    for x, y in [(268, lane + 42), (498, lane + 42), (612, lane + 42)]:
        d.arrow((x, y), (x, out - 24), colour="latent")
    for left, right, name, size in [
        (20, 364, "*z*_1", "6 × 16 × 16  =  1536 numbers"),
        (364, 532, "*z*_2", "12 × 8 × 8  =  768"),
        (532, 700, "*z*_3", "12 × 8 × 8  =  768"),
    ]:
        d.box((left + right) / 2, out, right - left, 48, "strong latent", corner=0)
        d.text((left + right) / 2, out - 10, name, 18)
        d.text((left + right) / 2, out + 12, size, 14)
    d.note(
        360, out + 40, "*z* = (*z*_1, *z*_2, *z*_3), as many numbers as *x*:  3 · 32 · 32 = 3072"
    )
    d.path([(20, 262), (700, 262)], look="wire rule")
    d.text(20, 290, "scales 1, 2", 15, "start", "b")
    d.text(20, 328, "scale 3", 15, "start", "b")
    parts = [
        (175, 118, "3 checkerboards"),
        (281, 66, "squeeze"),
        (372, 88, "3 channels"),
        (474, 88, "un-squeeze"),
        (616, 168, "squeeze, checkerboard"),
    ]
    for x, width, text in parts:
        d.box(x, 290, width, 28, "model", text, 14)
    for (a, width_a, _), (b, width_b, _) in zip(parts, parts[1:]):
        d.arrow((a + width_a / 2, 290), (b - width_b / 2, 290))
    d.box(175, 328, 118, 28, "model", "4 checkerboards", 14)
    d.note(246, 328, "couplings, each followed by batch norm", "start")
    return d


def coupling_network():
    d = Drawing(
        404,
        "The network of an image coupling, ConvResNet",
        "x_a is batch-normalised, doubled on a checkerboard, and given to ReLUs as x and as minus "
        "x; with the mask it enters a 3 by 3 convolution, then residual blocks. A 1 by 1 "
        "convolution of the first features and of every block's output is added to a sum, and "
        "from that sum alone batch norm, ReLU and a 1 by 1 convolution compute t and the raw s.",
    )
    lane, skip, total = 66, 140, 200
    d.box(38, lane, 44, 40, "data", "*x*_a", 18)
    d.box(124, lane, 88, 44, "model", "batch norm,\n× 2", 14)
    d.box(232, lane, 86, 44, "model", "ReLU(*x*),\nReLU(−*x*)", 14)
    d.box(342, lane, 66, 44, "model", "conv\n3 × 3", 14)
    d.box(458, lane, 66, 44, "strong model", "block 1", 14)
    d.box(616, lane, 66, 44, "strong model", "block *n*", 14)
    d.text(545, lane, "…", 20)
    places = [(38, 22), (124, 44), (232, 43), (342, 33), (458, 33), (545, 14), (616, 33)]
    for (a, half_a), (b, half_b) in zip(places, places[1:]):
        d.arrow((a + half_a, lane), (b - half_b, lane))
    d.box(124, skip - 8, 88, 34, "plain", "mask", 14)
    d.arrow((168, skip - 8), (292, skip - 8), (292, lane + 5))
    d.path([(649, lane), (668, lane)])
    for x in (398, 509, 668):
        d.dot(x, lane)
        d.arrow((x, lane), (x, skip - 16))
        d.box(x, skip, 72, 32, "model", "conv 1×1", 14)
    d.arrow((398, skip + 16), (398, total), (496, total))
    for x in (509, 668):
        d.arrow((x, skip + 16), (x, total - 13))
        d.operator(x, total, "+")
    d.arrow((522, total), (580, total))
    d.text(594, total, "…", 20)
    d.arrow((608, total), (655, total))
    d.note(438, total + 19, "sum of the skips")
    d.arrow((668, total + 13), (668, total + 46))
    d.box(630, total + 68, 140, 44, "model", "batch norm, ReLU,\nconv 1 × 1", 14)
    d.arrow((560, total + 68), (521, total + 68), colour="model")
    d.text(512, total + 68, "*t*, raw", 17, "end")
    d.text(700, total + 118, "*s* = rescale · tanh(raw)", 17, "end")
    d.note(700, total + 144, "rescale is learned; *s*, *t* are 0 at the start", "end")
    for line, note in enumerate(
        [
            "mask and × 2: on a checkerboard only",
            "a context enters beside the mask",
            "every convolution is weight-normed",
        ]
    ):
        d.note(20, skip + 34 + 21 * line, note, "start")
    d.box(212, 322, 384, 134, "plain")
    d.text(36, 274, "a residual block", 15, "start", "b")
    for x in (124, 270):
        d.box(x, 346, 126, 44, "model", "batch norm, ReLU,\nconv 3 × 3", 13)
    d.arrow((28, 346), (61, 346))
    d.dot(44, 346)
    d.arrow((44, 346), (44, 304), (362, 304), (362, 333))
    d.arrow((187, 346), (207, 346))
    d.arrow((333, 346), (349, 346))
    d.operator(362, 346, "+")
    d.arrow((375, 346), (398, 346))
    return d


def learned_noise():
    d = Drawing(
        398,
        "Learned noise: a conditional flow draws u, given x",
        "Uniform noise v goes through a logit, couplings that see the image x as context, and a "
        "sigmoid, and becomes the noise u in (0, 1). Then u is added to x and the sum divided by "
        "256. The log-determinant is minus D log 256 plus log |det du/dv|. Below: with uniform "
        "noise the density of y is a staircase; with learned noise it can be smooth, every cell "
        "having the mass that it had.",
    )
    lane, low = 82, 176
    d.box(312, lane, 330, 74, "plain", corner=9)
    d.text(312, 26, "*u* = *g*(*v*; *x*)", 17, look="b")
    d.box(54, lane, 58, 40, "noise", "*v*", 18)
    d.note(54, lane + 36, "U(0, 1)")
    for x, width, text, look in [
        (196, 62, "logit", "model"),
        (308, 92, "couplings", "strong model"),
        (426, 76, "sigmoid", "model"),
    ]:
        d.box(x, lane, width, 40, look, text)
    d.box(536, lane, 50, 40, "strong noise", "*u*", 18)
    places = [(54, 29), (196, 31), (308, 46), (426, 38), (536, 25)]
    for (a, half_a), (b, half_b) in zip(places, places[1:]):
        d.arrow((a + half_a, lane), (b - half_b, lane), colour="noise")
    d.box(54, low, 58, 40, "data", "*x*", 18)
    d.note(54, low + 34, "integers")
    d.arrow((83, low), (523, low))
    d.dot(308, low)
    d.arrow((308, low), (308, lane + 20))
    d.note(300, (lane + low) / 2 + 18, "context", "end")
    d.arrow((536, lane + 20), (536, low - 13), colour="noise")
    d.operator(536, low, "+", "noise")
    d.arrow((549, low), (574, low))
    d.box(606, low, 64, 40, "model", "÷ 256")
    d.arrow((638, low), (660, low))
    d.box(680, low, 40, 40, "data", "*y*", 18)
    d.text(700, low + 40, "log-det = log |det ∂*u*/∂*v*| − *D* log 256", 16, "end")
    d.path([(20, 238), (700, 238)], look="wire rule")
    bell = lambda r: math.exp(-((r - 2.45) ** 2) / 2) + 0.2 * math.exp(-((r - 4.4) ** 2) / 2)  # noqa: E731
    cell, base, height, fine = 48, 366, 84, 12
    for left, title, saying in [
        (46, "uniform noise", "a staircase"),
        (386, "learned noise", "smooth, with the same masses"),
    ]:
        curve = [(left, base)]
        for k in range(6):
            inside = [k + (i + 0.5) / fine for i in range(fine)]
            mean = sum(map(bell, inside)) / fine
            steps = inside if title == "learned noise" else [k, k + 1]
            curve += [
                (left + cell * r, base - height * (bell(r) if steps is inside else mean))
                for r in steps
            ]
        curve.append((left + 6 * cell, base))
        d.path(curve, "noise", True, "shape")
        d.path([(left - 12, base), (left + 6 * cell + 12, base)])
        for k in range(7):
            d.path([(left + cell * k, base), (left + cell * k, base + 6)])
            if k < 6:
                d.text(left + cell * (k + 0.5), base + 15, str(35 + k), 13, look="quiet")
        d.text(left - 12, 260, title, 15, "start", "b")
        d.note(
            left + 6 * cell + 12,
            260,
            saying,
            "end",
        )
    return d


def take_turns():
    d = Drawing(
        348,
        "Couplings take turns",
        "Above, four couplings whose mask is flipped every time: the first changes x_2 given x_1, "
        "the second x_1 given x_2, and so on, so that each coordinate is changed twice. Below, "
        "the mask is never flipped: x_2 is changed four times, and x_1 arrives as it was.",
    )
    for top, title, changed in [
        (20, "flipped every time: each coordinate is changed twice", [1, 0, 1, 0]),
        (190, "never flipped: *z*_1 = *x*_1, whatever is learned", [1, 1, 1, 1]),
    ]:
        d.text(20, top + 6, title, 15, "start", "b")
        lanes = [top + 50, top + 120]
        columns = [160 + 130 * k for k in range(4)]
        for lane, y in enumerate(lanes):
            stops = [69, *[x for x, c in zip(columns, changed) if c == lane], 651]
            for i, (a, b) in enumerate(zip(stops, stops[1:])):
                start = a if i == 0 else a + 31
                d.arrow((start, y), (b if i == len(stops) - 2 else b - 31, y))
            d.box(44, y, 50, 40, "data", f"*x*_{lane + 1}", 18)
            untouched = lane not in changed
            d.box(676, y, 50, 40, "latent" if untouched else "strong latent", f"*z*_{lane + 1}", 18)
        for k, (x, c) in enumerate(zip(columns, changed)):
            y, other = lanes[c], lanes[1 - c]
            d.dot(x, other)
            d.arrow((x, other), (x, y - 20 if c else y + 20), colour="model")
            d.box(x, y, 62, 40, "strong model", f"*f*_{k + 1}", 18)
    d.path([(20, 176), (700, 176)], look="wire rule")
    return d


DRAWINGS = [
    coupling,
    conditional_coupling,
    split_join,
    two_directions,
    chain,
    take_turns,
    preprocessing,
    image_couplings,
    squeeze,
    factor_out,
    coupling_network,
    learned_noise,
]


def write(folder=HERE):
    for draw in DRAWINGS:
        (folder / f"{draw.__name__}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    write()
