"""The folder of a run: what was asked for, metrics on the way, sample grids, checkpoints, and the state to resume from.

config.json          model, data and settings
metrics.jsonl        one line per evaluation
samples/             a grid of samples per evaluation, for flows of images
best.safetensors     the flow with the lowest validation loss, if there is a validation split; last.safetensors: the latest
state.safetensors    everything that a resumed run needs to go on to the same bits
results.json         figures of the finished flow, written by `python -m flowlib`
"""

import json
from pathlib import Path

import safetensors
import safetensors.torch

from . import checkpoints

__all__ = ["Run", "write_grid"]


class Run:
    """A run's folder; of several processes only the main one writes.

    Raises ValueError if the folder holds a run that was started otherwise, or one that was not asked to be resumed.
    """

    def __init__(self, folder, config, resume, main=True):
        self.folder, self.main = Path(folder), main
        self.config = json.loads(json.dumps(config))
        path = self.folder / "config.json"
        if main and path.exists():
            if not resume:
                raise ValueError(
                    f"{folder} already holds a run: resume it, or choose another folder"
                )
            _check_same(folder, _parse(path, path.read_bytes()), self.config)

    def begin(self):
        """Write what was asked for; metrics of a run that was cut off before its first state are forgotten."""
        if self.main:
            checkpoints.write(
                self.folder / "config.json", json.dumps(self.config, indent=2).encode() + b"\n"
            )
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)

    def read_state(self):
        """The tensors and numbers that `write_state` stored last, or (None, None)."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return None, None
        try:
            with safetensors.safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(
                    file.metadata()["numbers"]
                )
        except (safetensors.SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete the folder and train anew"
            ) from error

    def write_state(self, tensors, numbers):
        """Replace state.safetensors in one move, so that there is a whole one at every moment."""
        if self.main:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            checkpoints.write(
                self.folder / "state.safetensors",
                safetensors.torch.save(tensors, {"numbers": json.dumps(numbers)}),
            )

    def read_metrics(self, up_to_step):
        """The metrics up to a step, as a list of dicts; lines of later steps, and a torn last line, are forgotten."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        metrics = [
            m
            for m in (_parse(path, line) for line in lines if line.endswith(b"\n"))
            if m["step"] <= up_to_step
        ]
        if self.main:
            checkpoints.write(path, "".join(json.dumps(m) + "\n" for m in metrics).encode())
        return metrics

    def record(self, flow, metrics, best):
        """Add a line of metrics, a grid of samples (of uint8 images) and the checkpoints: `last`, and `best` if it is that."""
        if not self.main:
            return
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if flow.dequantize is not None:
            write_grid(
                flow.sample(36, seed=0), self.folder / "samples" / f"{metrics['step']:07d}.png"
            )
        for name in ["last", "best"] if best else ["last"]:
            checkpoints.save(
                flow, self.folder / f"{name}.safetensors", seed=self.config["seed"], results=metrics
            )


def write_grid(images, path):
    """uint8 images (n, C, H, W) as one PNG, six to a row with a pixel between them."""
    from PIL import Image
    from torchvision.utils import make_grid

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid = make_grid(images.cpu(), nrow=6, padding=1, pad_value=128)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)


def _parse(path, line):
    """The dict on a line of JSON."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the folder and train anew"
        ) from error


def _check_same(folder, stored, asked):
    for name in {**stored, **asked}:
        if stored.get(name) != asked.get(name):
            longer = (
                "; to train a finished flow for longer, start another run from it: load it, or "
                f"recipes.train(..., start={str(folder)!r})"
            )
            raise ValueError(
                f"{folder} was started with {name}={stored.get(name)}, and is to go on with "
                f"{asked.get(name)}: resume with what it was started with, or choose another folder"
                f"{longer if name == 'steps' else ''}"
            )
