"""Small things that every floor needs: budgets, seeds, and one check of what users hand in."""

import numbers
import os

import numpy as np
import torch

__all__ = ["as_tensor", "budget", "generator", "integer", "rand", "randn"]


def budget(full, fast):
    """Return `full`, or `fast` when the environment says FLOWLIB_FAST=1 (tests, a first quick look).

    >>> steps = budget(5_000, 200)
    """
    return fast if os.environ.get("FLOWLIB_FAST", "0") not in ("", "0") else full


def generator(seed):
    """Return a CPU `torch.Generator` for an integer seed; a generator or None is handed back as it is.

    None means torch's global generator, so that `torch.manual_seed` governs.
    """
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise ValueError(f"seed must be an integer, a torch.Generator or None, got {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be an integer of at most 64 bits, got {seed}")
    return torch.Generator().manual_seed(int(seed))


def integer(name, value, at_least):
    """Return `value` if it is an integer of at least `at_least`; otherwise raise a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def as_tensor(values, name="data"):
    """Return a tensor of what a user has: a tensor itself, an array (a view too), a data frame or a list of numbers.

    Raises ValueError for anything that holds no numbers.
    """
    if torch.is_tensor(values):
        return values
    try:
        return torch.from_numpy(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        kind = type(values).__name__
        raise ValueError(f"{name} must be a tensor or an array of numbers, got a {kind}") from error


def randn(shape, generator, like):
    """Standard normal draws in the dtype and on the device of `like`, from a generator of any device, or None."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def rand(shape, generator, like):
    """Uniform draws from [0, 1) in the dtype and on the device of `like`, from a generator of any device, or None."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
