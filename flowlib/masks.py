"""Boolean masks for coupling layers: True = passes through unchanged and conditions the others."""

import torch

from .common import generator, integer

__all__ = ["alternating", "halves", "random", "checkerboard", "channels"]


def alternating(D, flip=False):
    """Every second of D dimensions passes through. Shape (D,), bool.

    >>> alternating(4)
    tensor([ True, False,  True, False])
    """
    mask = torch.arange(integer("D", D, at_least=1)) % 2 == 0
    return ~mask if flip else mask


def halves(D, flip=False):
    """The first D // 2 dimensions pass through (with `flip`, the others do). Shape (D,), bool.

    >>> halves(5)
    tensor([ True,  True, False, False, False])
    """
    mask = torch.arange(integer("D", D, at_least=1)) < D // 2
    return ~mask if flip else mask


def random(D, seed):
    """A random D // 2 of D dimensions pass through; the same seed gives the same mask. Shape (D,), bool."""
    order = torch.randperm(integer("D", D, at_least=1), generator=generator(seed))
    return order < D // 2


def checkerboard(H, W, flip=False):
    """The black fields of a board pass through: those where row + column is even. Shape (H, W), bool.

    >>> checkerboard(2, 3)
    tensor([[ True, False,  True],
            [False,  True, False]])
    """
    row, column = (
        torch.arange(integer("H", H, at_least=1))[:, None],
        torch.arange(integer("W", W, at_least=1)),
    )
    mask = (row + column) % 2 == 0
    return ~mask if flip else mask


def channels(C, flip=False):
    """The first C // 2 channels pass through (with `flip`, the others do). Shape (C,), bool."""
    return halves(C, flip)
