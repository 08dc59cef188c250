"""Writes site/flowlab.html, one file that needs no other: the sources in site/flowlab/ put into
their template, and the weights of the shipped moons flow. Run it after every change of either."""

import base64
import re
from pathlib import Path

import torch

from flowlib import checkpoints

SITE = Path(__file__).resolve().parent


def weights(flow) -> str:
    """All weights in the order of `flow.parameters()`: big-endian float32, each as five letters of
    base 85, which is shorter than base 64. The alphabet has no slash, so it ends no script."""
    flat = torch.cat([parameter.detach().flatten() for parameter in flow.parameters()])
    return base64.b85encode(flat.numpy().astype(">f4").tobytes()).decode()


def compact(source: str) -> str:
    """A source without indentation, blank lines and comments that stand on lines of their own."""
    source = re.sub(r"^\s*/\*\*.*?\*/\n", "", source, flags=re.DOTALL | re.MULTILINE)
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def build() -> str:
    """The whole page."""
    page = (SITE / "flowlab" / "template.html").read_text(encoding="utf-8")
    for name in ["style.css", "flow.js", "densities.js", "worker.js", "lab.js"]:
        source = (SITE / "flowlab" / name).read_text(encoding="utf-8")
        page = page.replace(f"/*{{{name}}}*/", compact(source))
    return page.replace("/*{moons}*/", weights(checkpoints.load("moons")))


if __name__ == "__main__":
    path = SITE / "flowlab.html"
    path.write_text(build(), encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size:,} bytes")
