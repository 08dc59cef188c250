"""Explorers: sliders on a flow, for JupyterLab, that code can move as a hand can.

>>> w = widgets.explore_layers(flow, x)     # doctest: +SKIP
>>> w                                       # doctest: +SKIP
>>> w.controls["layer"].value = 3           # doctest: +SKIP
>>> w.state["points"]                       # doctest: +SKIP

The last line of a cell shows `w`; setting a `value` does what dragging does; `state` is what the
picture then shows; `w.ask(question, answer)` puts a question above. They need a running kernel, and
raise ValueError at once for bad arguments.
"""

from .explorer import Explorer
from .images import explore_scales, interpolate, latent_sliders, manifold, principal_directions
from .plane import explore_latent, explore_layers, explore_training

__all__ = ["Explorer", "explore_latent", "explore_layers", "explore_scales", "explore_training"]
__all__ += ["interpolate", "latent_sliders", "manifold", "principal_directions"]
