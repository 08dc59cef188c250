"""Checkpoints, and the folder of a run. Nothing is unpickled: a stranger's file cannot run code.

A checkpoint is `name.safetensors`, the weights and a checksum, and `name.json`, its card: builder
and arguments, seed, hardware, date, version of torch, results. A run's folder holds

config.json        model, data and settings, and the version of torch that it was started with
metrics.jsonl      one line per evaluation; samples/: a grid each, for flows of images
last.safetensors   the flow at the latest evaluation; best.safetensors: at the best one
state.safetensors  everything that a resumed run needs to go on, bit-exact on the CPU
results.json       how the finished flow scores, written by `python -m flowlib`
"""

import datetime
import io
import json
import math
import os
import platform
import re
import secrets
import zlib
from functools import reduce
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch.overrides import TorchFunctionMode

from .common import SERIES, as_tensor
from .flow import Flow
from .models import build

__all__ = ["save", "load", "read_card", "shipped", "hardware", "Run", "tiles", "write_grid"]

PRETRAINED = SERIES / "data" / "pretrained"  # flows of images
PACKAGED = Path(__file__).resolve().parent / "pretrained"  # flows of points


def save(flow: Flow, path: str | os.PathLike, *, seed=None, results=None, half=False) -> None:
    """Write `path` (….safetensors) and its card, each in one move; `results` is a dict.

    `half` stores matrices and kernels in float16 where their values fit. Raises ValueError for a
    flow that no builder made, another file ending, and results that JSON cannot hold.

    >>> save(load("moons"), "moons.safetensors", seed=0, results={"nats": 0.3})  # doctest: +SKIP
    """
    path, tensors = Path(path).expanduser(), flow.state_dict()
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint's name ends in .safetensors, got {path.name!r}")
    card = require_builder(flow) | {"seed": seed, "hardware": hardware()}
    card |= {"date": str(datetime.date.today()), "torch": torch.__version__}
    for name, tensor in tensors.items():
        if half and tensor.is_floating_point() and tensor.dim() > 1:
            tensors[name] = small if (small := tensor.half()).isfinite().all() else tensor
    write(path.with_suffix(".json"), to_json(card | {"results": results or {}}, indent=2))
    write(path, _pack(tensors))


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Flow:
    """Rebuild the flow saved at `path`, or shipped under that name, in evaluation mode.

    Of a run's folder it takes `best.safetensors` if there is one, else `last.safetensors`.
    Raises FileNotFoundError for an unknown name or path, ValueError for a file that is damaged, or
    holds NaN, or anything but the weights of its card.

    >>> load("moons").sample(4, seed=0).shape
    torch.Size([4, 2])
    """
    path = find(path)
    card, tensors = read_card(path), _unpack(path)[0]
    dtypes = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    try:
        with _Allowance(tensors, card["arguments"].get("shape", ())):
            flow = build(card["builder"], **card["arguments"])
        flow.to(reduce(torch.promote_types, dtypes))
        for name, own in flow.state_dict().items():
            if name in tensors and tensors[name].is_floating_point() != own.is_floating_point():
                raise ValueError(f"{name} is {tensors[name].dtype}, expected {own.dtype}")
        flow.load_state_dict(tensors)
    except Exception as error:  # whatever a stranger's card leads to
        builder = card["builder"]
        raise ValueError(f"{path} does not hold the {builder} of its card: {error}") from error
    return flow.to(device).eval()


def read_card(path: str | os.PathLike) -> dict:
    """The card of a checkpoint, given its path or a shipped name; errors as of `load`.

    >>> read_card("moons")["builder"]
    'realnvp_2d'
    """
    path = find(path)
    card = path.with_suffix(".json")
    if not card.is_file():
        raise FileNotFoundError(f"{path} has no {card.name} beside it: how to rebuild the flow")
    return parse(card, card.read_bytes(), builder=str, arguments=dict, results=dict)


def shipped() -> dict[str, Path]:
    """The flows that came with this install, name -> file."""
    return {p.stem: p for f in (PACKAGED, PRETRAINED) for p in sorted(f.glob("*.safetensors"))}


def find(path: str | os.PathLike) -> Path:
    """The file that `load` reads; FileNotFoundError if there is none."""
    given, flows = Path(path).expanduser(), shipped()
    for file in (given, given / "best.safetensors", given / "last.safetensors"):
        if file.is_file():
            return file
    if str(path) in flows:
        return flows[str(path)]
    known = ", ".join(sorted(flows))
    raise FileNotFoundError(f"no checkpoint at {str(path)!r}; shipped with flowlib: {known}")


def hardware() -> str:
    """What results were measured on, such as 'AMD EPYC, 2 cores' or 'NVIDIA H200'."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{named[1] if named else platform.machine()}, {os.cpu_count()} cores"


def require_builder(flow: Flow) -> dict:
    """A flow's {"builder": name, "arguments": {...}}; ValueError if no builder made it."""
    if not hasattr(flow, "built_by"):
        raise ValueError(
            "only flows from a builder in flowlib.models can be saved with what rebuilds them; for "
            "one of your own there is safetensors.torch.save_file(flow.state_dict(), path)"
        )
    return flow.built_by


class Run:
    """A run's folder, locked against other processes; of a run's own, only the main one writes.

    Raises ValueError if the folder holds a run that was started otherwise, was not asked to be
    resumed, is damaged, or is being written by another process.
    """

    def __init__(self, folder: str | os.PathLike, config: dict, resume: bool, main: bool = True):
        self.folder, self.main = Path(folder).expanduser(), main
        self.config = json.loads(to_json(config))
        if not main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder.resolve() / ".lock", thread_local=False, is_singleton=True)
        try:
            self.lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(f"{folder} is being written by another process") from error
        path = self.folder / "config.json"
        if path.exists() and not resume:
            raise ValueError(f"{folder} already holds a run: resume it, or choose another folder")
        stored = parse(path, path.read_bytes()) if path.exists() else self.config
        for name, asked in self.config.items():
            if stored.get(name) != asked:
                again = f", or begin another from it with recipes.train(..., start={str(folder)!r})"
                raise ValueError(
                    f"{folder} was started with {name}={stored.get(name)}, and is to go on with "
                    f"{asked}: resume with what it was started with, or choose another folder"
                    f"{again if name == 'steps' else ''}"
                )
        for place in (self.folder, self.folder / "samples"):
            for left_over in place.glob(".flowlib-*.tmp"):
                left_over.unlink()

    def begin(self) -> None:
        """Write what was asked for; metrics of a run cut off before its first state are dropped."""
        if self.main:
            config = {**self.config, "torch": torch.__version__}
            write(self.folder / "config.json", to_json(config, indent=2))
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)

    def read_state(self) -> tuple[dict, dict] | tuple[None, None]:
        """The tensors and numbers that `write_state` stored last, or (None, None)."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return None, None
        tensors, texts = _unpack(path)
        return tensors, parse(path, texts.get("numbers", ""), step=int)

    def write_state(self, tensors: dict, numbers: dict) -> None:
        """Replace state.safetensors in one move, so that there is a whole one at every moment."""
        if self.main:
            content = _pack(tensors, numbers=to_json(numbers).decode())
            write(self.folder / "state.safetensors", content)

    def read_metrics(self, up_to_step: int) -> list[dict]:
        """The metrics up to a step; later lines, and a torn last one, are forgotten."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        metrics = [parse(path, line, step=int) for line in lines if line.endswith(b"\n")]
        metrics = [line for line in metrics if line["step"] <= up_to_step]
        if self.main:
            write(path, b"".join(map(to_json, metrics)))
        return metrics

    def record(self, flow: Flow, metrics: dict, best: bool, context=None) -> None:
        """Add a line of metrics, a grid of samples (of images, under the first rows of the data's
        context, if there is one), and the checkpoints."""
        if not self.main:
            return
        path = self.folder / "metrics.jsonl"
        write(path, (path.read_bytes() if path.exists() else b"") + to_json(metrics))
        if flow.dequantize is not None:
            grid = self.folder / "samples" / f"{metrics['step']:07d}.png"
            context = None if context is None else context[:36]
            n = 36 if context is None else len(context)
            images = flow.sample(n, seed=0, context=context)
            write_grid(images, grid, flow.dequantize.bits)
        for name in ["last", "best"] if best else ["last"]:
            path = self.folder / f"{name}.safetensors"
            save(flow, path, seed=self.config["seed"], results=metrics)


def tiles(images, columns: int = 1, bits: int = 8) -> np.ndarray:
    """Images (n, C, H, W) of so many bits as one uint8 picture (height, width, 3).

    A pixel lies between them. 0 is black and 2^bits - 1 white; beyond it, a ValueError.

    >>> tiles(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), columns=2).shape
    (19, 19, 3)
    """
    from torchvision.utils import make_grid

    images, white = as_tensor(images).cpu().long(), 2**bits - 1
    if images.numel() and images.max() > white:
        raise ValueError(f"images of {bits} bits are 0 ... {white}, got {images.max()}")
    grid = make_grid(images * 255 // white, nrow=columns, padding=1, pad_value=128)
    return grid.permute(1, 2, 0).to(torch.uint8).numpy()


def write_grid(images: torch.Tensor, path: str | os.PathLike, bits: int = 8) -> None:
    """Images (n, C, H, W) as one PNG, six to a row."""
    from PIL import Image

    Image.fromarray(tiles(images, 6, bits)).save(file := io.BytesIO(), format="PNG")
    write(path, file.getvalue())


def write(path: str | os.PathLike, content: bytes) -> None:
    """Write aside, then rename: at every moment the file is whole, the old one or the new one."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".flowlib-{secrets.token_hex(8)}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def to_json(value, indent=None) -> bytes:
    """JSON and a line feed; NumPy's numbers, arrays and tensors as plain numbers and lists."""
    try:
        text = json.dumps(value, indent=indent, default=lambda other: other.tolist())
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{value!r:.200} holds more than numbers, texts, lists, dicts") from error
    return text.encode() + b"\n"


def parse(path: Path, content: str | bytes, **kinds: type) -> dict:
    """The JSON object in a file's content, with a value of its kind under each name of `kinds`."""
    try:
        found = dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise _damaged(path, f"{name} must be a {kind.__name__}, got {found.get(name)!r:.80}")
    return found


def _pack(tensors, **texts):
    """The bytes of a safetensors file of tensors and texts, with a checksum."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(tensors, {**texts, "crc32": _checksum(tensors)})


def _unpack(path):
    """Tensors and texts of a safetensors file; one without a checksum is taken as it is."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error
    if "crc32" in texts and texts["crc32"] != _checksum(tensors):
        raise _damaged(path, "its checksum differs")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _damaged(path, f"{name} holds NaN or infinity")
    return tensors, texts


def _checksum(tensors):
    arrays = (tensors[name].reshape(-1).view(torch.uint8).numpy() for name in sorted(tensors))
    return str(reduce(lambda crc, array: zlib.crc32(array, crc), arrays, 0))


def _damaged(path, error):
    advice = "restore it from a copy, or if this is a run, delete the folder and train anew"
    return ValueError(f"{path} is damaged ({error}): {advice}")


class _Allowance(TorchFunctionMode):
    """Stops a builder that makes more weights than its file holds, before memory is taken."""

    def __init__(self, tensors, shape):
        super().__init__()
        self.weights, self.values = len(tensors), sum(map(torch.numel, tensors.values()))
        if math.prod(shape) > 10 * self.values:  # masks take memory before the first weight
            raise ValueError(f"data of shape {shape} do not go with {self.values} weights")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.empty:
            self.weights -= 1
            self.values -= math.prod(args if isinstance(args[0], int) else args[0])
            if min(self.weights, self.values) < 0:
                raise ValueError("its card asks for more weights than it holds")
        return function(*args, **kwargs or {})
