"""Which data a training step sees: a function of the seed and the step alone.

So a resumed run needs no memory of what was drawn before, and all processes of a distributed run
see the same global batch, noise and all, of which each takes its share.
"""

import copy
import hashlib
import inspect

import numpy as np
import torch

__all__ = ["make_batches", "DensityStream", "TensorStream"]

ORDER, NOISE, POINTS, VALIDATION, FLIPS = range(5)


def make_batches(flow, data, context, batch_size, validation, flip, seed):
    """The batches of a density, a table or an image set, as the flow takes them, or a refusal."""
    if flip and len(flow.shape) != 3:
        raise ValueError(f"flip mirrors images (C, H, W), not data of shape {tuple(flow.shape)}")
    if flow.dequantize is not None and getattr(data, "bits", 8) < flow.dequantize.bits:
        what = f"images of {data.bits} bits, the flow takes {flow.dequantize.bits}"
        raise ValueError(f"{data.name} has {what}: build it with bits={data.bits}")
    # torchvision's image sets have a flag `train`, the tables of pandas a method `sample`
    rows = data.train if torch.is_tensor(getattr(data, "train", None)) else data
    if isinstance(context, str):
        labels = getattr(data, "train_labels", None)
        if context != "labels" or labels is None:
            raise ValueError(f"context='labels' is for image sets with labels, got {context!r}")
        context = labels
    if hasattr(rows, "__array__") or isinstance(rows, (list, tuple)):
        rows, context = flow.as_input(rows, context)
        if validation >= len(rows):
            raise ValueError(f"validation={validation} leaves none of {len(rows)} rows to train on")
        return TensorStream(flow, rows, context, batch_size, validation, flip, seed)
    if not callable(getattr(data, "sample", None)):
        raise ValueError(
            "data must be a tensor or an array (N, *shape), an image set of flowlib.data, or a "
            f"density with sample(n, seed), got a {type(data).__name__}; of another library's "
            "image set give the images, a uint8 tensor (N, C, H, W)"
        )
    if context is not None or flow.context_features:
        raise ValueError("a context goes with a data tensor; a density draws points that have none")
    if validation:
        raise ValueError("validation holds out rows of a data set; a density has none")
    return DensityStream(flow, data, batch_size, seed)


class DensityStream:
    """New points at every step; many batches are drawn in one call, whose overhead dominates."""

    rows = context = None

    def __init__(self, flow, density, batch_size, seed):
        self.flow, self.density, self.batch_size, self.seed = flow, density, batch_size, seed
        self.at_once = min(100, max(1, 10_000_000 // (batch_size * flow.shape.numel())))
        self.chunk = None

    def __call__(self, step):
        """The points, context and noise of one step: (B, *shape), None, None or (B, *shape)."""
        chunk, i = divmod(step, self.at_once)
        if chunk != self.chunk:
            n = self.at_once * self.batch_size
            points = draw(self.density, n, stream(self.seed, POINTS, chunk))
            points = self.flow.as_input(points)[0].detach()
            if len(points) != n:
                raise ValueError(f"the density was asked for {n} points and drew {len(points)}")
            self.points, self.chunk = points.split(self.batch_size), chunk
        rng = stream(self.seed, NOISE, step, self.points[i].device)
        return self.points[i], None, self.flow.draw_noise(self.batch_size, rng)

    @property
    def per_epoch(self):
        raise ValueError("a density has no epochs: say how many steps")

    def fingerprint(self):
        """What tells this density from another: the mean of its first batch, to three digits."""
        return f"mean {self(0)[0].double().mean():.3g}"


class TensorStream:
    """The rows of a tensor in a new order every epoch; the last `validation` rows are held out.
    With `flip`, half of the images are mirrored in training; those held out never are."""

    def __init__(self, flow, data, context, batch_size, validation, flip, seed):
        self.flow, self.flip, self.seed, self.epoch = flow, flip, seed, None
        self.data, self.context = data.detach(), None if context is None else context.detach()
        self.rows, self.n = len(data), len(data) - validation
        self.batch_size = min(batch_size, self.n)
        self.per_epoch = self.n // self.batch_size

    def __call__(self, step):
        """The rows, context and noise of one step: (B, *shape), (B, C) and (B, *shape) or None."""
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            order = torch.randperm(self.n, generator=stream(self.seed, ORDER, epoch))
            self.order, self.epoch = order.to(self.data.device), epoch
        rows = self.order[i * self.batch_size : (i + 1) * self.batch_size]
        x, context, noise = self._take(rows, NOISE, step)
        if self.flip:
            rng = stream(self.seed, FLIPS, step, x.device)
            coins = torch.rand(len(x), generator=rng, device=x.device)
            x = torch.where((coins < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
        return x, context, noise

    def held_out(self, chunk=500):
        """The validation rows in pieces, with the same noise every time."""
        rows = torch.arange(self.n, self.rows, device=self.data.device)
        for i, piece in enumerate(rows.split(chunk)):
            yield self._take(piece, VALIDATION, i)

    def fingerprint(self):
        """What tells these rows from others: a hash of their shape and of some 500 of them."""
        digest = hashlib.sha256(f"{self.data.shape} {self.data.dtype}".encode())
        for part in [self.data] if self.context is None else [self.data, self.context]:
            digest.update(part[:: max(1, self.rows // 500)].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _take(self, rows, purpose, number):
        context = None if self.context is None else self.context[rows]
        rng = stream(self.seed, purpose, number, self.data.device)
        return self.data[rows], context, self.flow.draw_noise(len(rows), rng)


def about(data, batches):
    """What a run's folder remembers of the data: their name and number."""
    name = getattr(data, "name", None) or type(data).__name__
    if batches.rows is None and type(data).__repr__ is not object.__repr__:
        name = repr(data)
    return {"data": str(name), "rows": batches.rows}


def draw(density, n, rng):
    """n points of a density of ours, of torch.distributions or of scikit-learn."""
    arguments = inspect.signature(density.sample).parameters
    if isinstance(density, torch.distributions.Distribution):
        torch.manual_seed(rng.initial_seed())  # `fit` puts the global generator back
        return density.sample((n,))
    if "seed" in arguments:
        return density.sample(n, seed=rng)
    if "random_state" in arguments:
        return density.sample(n, random_state=rng.initial_seed() % 2**32)
    if hasattr(density, "random_state"):  # a mixture, which returns points and their components
        density = copy.copy(density)
        density.random_state = rng.initial_seed() % 2**32
        return density.sample(n)[0]
    raise ValueError(f"sample of a {type(density).__name__} must take n and seed")


def stream(seed, purpose, number, device="cpu"):
    """A generator for one purpose and step; numpy's SeedSequence keeps such streams independent."""
    state = np.random.SeedSequence((seed % 2**64, purpose, number)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) >> 1)
