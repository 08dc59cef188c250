"""Small things that every floor needs: budgets, seeds, and checks of what users hand in."""

import functools
import math
import numbers
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["SERIES", "budget"]
Seed = int | torch.Generator | None
_HERE = Path(__file__).resolve().parent
# What notebooks read (checkers, results, flows): a checkout has it beside flowlib, a wheel within.
SERIES = _HERE / "series" if (_HERE / "series").is_dir() else _HERE.parent


def budget(full, fast):
    """`full`, or `fast` where the environment says FLOWLIB_FAST=1 (tests, a first quick look).

    >>> steps = budget(5_000, 200)
    """
    return fast if os.environ.get("FLOWLIB_FAST", "0") not in ("", "0") else full


def generator(seed: Seed) -> torch.Generator | None:
    """A CPU generator for an integer; a generator, or None for torch's own, is handed back."""
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not (whole and -(2**63) <= seed < 2**64):
        raise ValueError(f"seed must be an integer of at most 64 bits or a generator, got {seed!r}")
    return torch.Generator().manual_seed(int(seed))


def on_cpu(rng):
    """The generator itself, or for one of another device a CPU generator that its draw seeds."""
    if rng is None or rng.device.type == "cpu":
        return rng
    return generator(torch.randint(2**62, (), generator=rng, device=rng.device).item())


def integer(name: str, value: int, at_least: int) -> int:
    """`value`, or a ValueError that names it unless it is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def positive(name: str, value: float) -> float:
    """`value`, or a ValueError that names it unless it is a positive, finite number."""
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


def as_tensor(values, name: str = "data") -> Tensor:
    """A tensor of a tensor, array, data frame or list; a ValueError for what holds no numbers."""
    if torch.is_tensor(values):
        return values
    try:
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        kind = type(values).__name__
        raise ValueError(f"{name} must be a tensor or an array of numbers, got a {kind}") from error


def holds(condition: Tensor) -> bool:
    """False where a condition is known to be false; True also where it cannot be read: inside
    `torch.compile`, under `torch.func.vmap`, and on the meta device."""
    try:
        return torch.compiler.is_compiling() or bool(condition)
    except RuntimeError:
        return True


def randn(shape, generator: torch.Generator | None, like: Tensor, draw=torch.randn) -> Tensor:
    """Standard normal draws in the dtype and on the device of `like`, whatever the generator's."""
    if generator is None:
        return draw(shape, dtype=like.dtype, device=like.device)
    drawn = draw(shape, generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)


rand = functools.partial(randn, draw=torch.rand)  # the same, uniform on [0, 1)
