"""Which data a training step sees: a function of the seed and the step alone.

So a resumed run needs no memory of what was drawn before, and all processes of a distributed run see the same global batch,
noise and all, of which each takes its share.
"""

import numpy as np
import torch

from .common import integer

__all__ = ["make_batches", "DensityStream", "TensorStream"]

ORDER, NOISE, POINTS, VALIDATION, FLIPS = range(5)


def stream(seed, purpose, number, device="cpu"):
    """A generator for one purpose and step; numpy's SeedSequence keeps such streams independent."""
    state = np.random.SeedSequence((seed % 2**64, purpose, number)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) >> 1)


def make_batches(flow, data, context, batch_size, validation, flip, seed):
    """The batches of a density, a tensor or an image set, checked at the door."""
    integer("batch_size", batch_size, at_least=1)
    integer("validation", validation, at_least=0)
    if flip and len(flow.shape) != 3:
        raise ValueError(
            f"flip mirrors images (C, H, W); this flow takes data of shape {tuple(flow.shape)}"
        )
    if hasattr(data, "sample"):
        if context is not None:
            raise ValueError(
                "a context goes with a data tensor; a density draws fresh points that have none"
            )
        if validation:
            raise ValueError("validation holds out rows of a data set; a density has none")
        flow.check_context(None, batch_size)
        return DensityStream(flow, data, batch_size, seed)
    rows = getattr(data, "train", data)
    rows, context = flow.as_input(rows, context)
    if validation >= len(rows):
        raise ValueError(
            f"validation={validation} leaves nothing to train on: there are {len(rows)} rows"
        )
    return TensorStream(flow, rows, context, batch_size, validation, flip, seed)


class DensityStream:
    """New points of a density at every step; many batches are drawn in one call, whose fixed overhead dominates."""

    at_once = 100

    def __init__(self, flow, density, batch_size, seed):
        self.flow, self.density, self.batch_size, self.seed = flow, density, batch_size, seed
        self.chunk = None

    def __call__(self, step):
        """The points, context and noise of one step: (B, *shape), None, None."""
        chunk, i = divmod(step, self.at_once)
        if chunk != self.chunk:
            points = self.density.sample(
                self.at_once * self.batch_size, seed=stream(self.seed, POINTS, chunk)
            )
            points = points.to(next(self.flow.parameters()))
            points, _ = self.flow.as_input(points)
            self.points, self.chunk = points.split(self.batch_size), chunk
        return self.points[i], None, None

    @property
    def per_epoch(self):
        raise ValueError("a density has no epochs: say how many steps")

    def interval(self, steps):
        """Steps between evaluations."""
        return -(-steps // 10)

    def held_out(self):
        return []


class TensorStream:
    """The rows of a tensor in a new order every epoch, on the device in the dtype that they came in; the last
    `validation` rows are held out. With `flip`, half of the images are mirrored in training; those held out never are."""

    def __init__(self, flow, data, context, batch_size, validation, flip, seed):
        device = next(flow.parameters()).device
        self.flow, self.flip, self.seed = flow, flip, seed
        self.data, self.context = data.to(device), None if context is None else context.to(device)
        self.n = len(data) - validation
        self.batch_size = min(batch_size, self.n)
        self.epoch = None

    @property
    def per_epoch(self):
        return self.n // self.batch_size

    def interval(self, steps):
        """Steps between evaluations."""
        return self.per_epoch

    def __call__(self, step):
        """The rows, context and noise of one step: (B, *shape), (B, C) or None, (B, *shape) or None."""
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.order = torch.randperm(self.n, generator=stream(self.seed, ORDER, epoch)).to(
                self.data.device
            )
            self.epoch = epoch
        x, context, noise = self._take(
            self.order[i * self.batch_size : (i + 1) * self.batch_size], NOISE, step
        )
        if self.flip:
            mirrored = (
                torch.rand(len(x), generator=stream(self.seed, FLIPS, step)).to(x.device) < 0.5
            )
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        return x, context, noise

    def held_out(self, chunk=500):
        """The validation rows in pieces, with the same noise every time."""
        rows = torch.arange(self.n, len(self.data), device=self.data.device)
        for i, piece in enumerate(rows.split(chunk) if len(rows) else []):
            yield self._take(piece, VALIDATION, i)

    def _take(self, rows, purpose, number):
        noise = None
        if self.flow.dequantize is not None:
            noise = self.flow.draw_noise(
                len(rows), stream(self.seed, purpose, number, self.data.device)
            )
        return self.data[rows], None if self.context is None else self.context[rows], noise
