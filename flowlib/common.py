"""Small things that every floor needs: budgets, seeds and the wording of errors."""

import numbers
import os

import torch

__all__ = ["budget", "generator", "whole_number"]


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


def whole_number(name, value, at_least):
    """Return `value` if it is an integer of at least `at_least`; otherwise raise a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")
    return int(value)
