"""Boolean masks for coupling layers: True = passes through unchanged and conditions the others."""

import torch
from torch import Tensor

from .common import generator, integer

__all__ = ["alternating", "halves", "random", "checkerboard", "channels"]


def alternating(D: int, flip: bool = False) -> Tensor:
    """Every second of D dimensions passes through. Shape (D,), bool.

    >>> alternating(4)
    tensor([ True, False,  True, False])
    """
    return (torch.arange(integer("D", D, at_least=1)) % 2 == 0) ^ flip


def halves(D: int, flip: bool = False) -> Tensor:
    """The first D // 2 dimensions pass through (with `flip`, the others do). Shape (D,), bool.

    >>> halves(5)
    tensor([ True,  True, False, False, False])
    """
    return (torch.arange(integer("D", D, at_least=1)) < D // 2) ^ flip


def random(D: int, seed: int) -> Tensor:
    """A random D // 2 of D dimensions pass through, the same for the same seed. Shape (D,), bool.

    >>> random(4, seed=0).sum()
    tensor(2)
    """
    order = torch.randperm(integer("D", D, at_least=1), generator=generator(seed))
    return order < D // 2


def checkerboard(H: int, W: int, flip: bool = False) -> Tensor:
    """The fields of a board where row + column is even pass through. Shape (H, W), bool.

    >>> checkerboard(2, 3)
    tensor([[ True, False,  True],
            [False,  True, False]])
    """
    row, column = torch.arange(integer("H", H, 1))[:, None], torch.arange(integer("W", W, 1))
    return ((row + column) % 2 == 0) ^ flip


channels = halves  # the first C // 2 of C channels pass through
