"""flowlib: normalizing flows in the style of Real NVP, small enough to read in an evening."""

import importlib
import pkgutil

from .common import SERIES, budget
from .flow import Flow

__version__ = "0.2.0"
_MODULES = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
__all__ = ["SERIES", "Flow", "budget", *_MODULES]


def __getattr__(name):
    """Import a floor of the house when it is first used, so that `import flowlib` stays quick."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"flowlib has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
