"""Checkpoints: `name.safetensors` holds the weights, `name.json` beside it how to rebuild the flow and what it achieved.

Nothing is unpickled, so a checkpoint from a stranger cannot run code.
"""

import datetime
import json
import os
import platform
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from .models import build

__all__ = ["save", "load", "read_card", "hardware", "PRETRAINED"]

PRETRAINED = Path(__file__).resolve().parents[1] / "data" / "pretrained"


def save(flow, path, *, seed=None, results=None, half=False):
    """Write `path` (….safetensors) and its JSON card; each is written aside and renamed, so a half-written file never counts.

    The card holds the builder and its arguments, `seed`, hardware, date, library versions and `results`, a dict of figures.
    `half` stores matrices and kernels in float16, at half the size; vectors (biases, scales, statistics) stay as they are.
    Raises ValueError for a flow that no builder of `flowlib.models` made, and for another file ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint's name ends in .safetensors, got {path.name!r}")
    card = {
        **require_builder(flow),
        "seed": seed,
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "results": results or {},
    }
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in flow.state_dict().items()
    }
    if half:
        tensors = {
            name: tensor.half() if tensor.dim() > 1 and tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    write(path, safetensors.torch.save(tensors))


def load(path):
    """Rebuild the flow saved at `path`, or shipped under that name, on the CPU and in evaluation mode.

    Of a run's folder it takes `best.safetensors` if there is one, else `last.safetensors`.

    Raises FileNotFoundError for an unknown name or path, ValueError for a damaged or foreign file.
    """
    path = _find(path)
    card = read_card(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is damaged or is no safetensors file ({error}); save it anew or restore it from a copy"
        ) from error
    try:
        flow = build(card["builder"], **card["arguments"])
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path.with_suffix('.json').name} does not describe a model of flowlib ({error})"
        ) from error
    if all(
        tensor.dtype == torch.float64 for tensor in tensors.values() if tensor.is_floating_point()
    ):
        flow.double()
    try:
        flow.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path.name} does not hold the weights of the {card['builder']} that its card describes: {error}"
        ) from error
    return flow.eval()


def read_card(path):
    """The JSON card of a checkpoint, given its path or a shipped name, as a dict; same errors as `load`."""
    path = _find(path)
    card_path = path.with_suffix(".json")
    if not card_path.is_file():
        raise FileNotFoundError(
            f"{path.name} has no {card_path.name} beside it, which says how to rebuild the flow"
        )
    try:
        card = json.loads(card_path.read_text())
        card["builder"], card["arguments"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{card_path.name} is damaged or not a flowlib card ({type(error).__name__}: {error})"
        ) from error
    return card


def hardware():
    """A line such as 'AMD EPYC, 2 cores' or 'NVIDIA H200', for results that say where they were measured."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{name}, {os.cpu_count()} cores"


def _find(path):
    given, path = str(path), Path(path)
    for candidate in (path, path / "best.safetensors", path / "last.safetensors"):
        if candidate.is_file():
            return candidate
    shipped = PRETRAINED / f"{given}.safetensors"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in PRETRAINED.glob("*.safetensors"))) or "none"
    raise FileNotFoundError(
        f"no checkpoint at {given!r}, and none is shipped under that name (shipped: {names})"
    )


def require_builder(flow):
    """The builder and arguments of a flow, as {"builder": ..., "arguments": {...}}; ValueError if no builder made it."""
    if not hasattr(flow, "built_by"):
        raise ValueError(
            "only flows from a builder in flowlib.models can be saved with what it takes to rebuild them; "
            "save a flow of your own with safetensors.torch.save_file(flow.state_dict(), path)"
        )
    return flow.built_by


def write(path, content):
    """Write bytes aside, then rename: at every moment the file is whole, the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
