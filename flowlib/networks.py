"""Networks that compute shift and scale inside a coupling layer. They may be anything: nobody inverts them."""

import torch
from torch import nn

__all__ = ["MLP", "SideBySide"]


class MLP(nn.Sequential):
    """A ReLU network from the values that pass through (and the context) to a coupling's parameters.

    Hidden layers after the first start as He et al. (arXiv 1502.01852) advise; the last layer starts at zero, so a coupling
    built on it starts as the identity.

    Shapes: x (B, in_features), context (B, context_features) or None -> (B, out_features).
    Raises ValueError if `hidden` is not a sequence of widths, if there is nothing to see (no input and no context), and
    if a network built with `context_features` is called without a context.
    """

    def __init__(self, in_features, out_features, hidden=(64, 64), context_features=0):
        if in_features + context_features < 1:
            raise ValueError("an MLP needs at least one input: in_features + context_features is 0")
        if not isinstance(hidden, (tuple, list)):
            raise ValueError(f"hidden must list the widths of the hidden layers, such as (64, 64), got {hidden!r}")
        widths = [in_features + context_features, *hidden]
        layers = []
        for n_in, n_out in zip(widths, widths[1:]):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))
        for layer in layers[2::2]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)
        self.context_features = context_features

    def forward(self, x, context=None):
        if self.context_features:
            if context is None:
                raise ValueError(f"this network was built for a context of {self.context_features} features; none was given")
            x = torch.cat([x, context], dim=1)
        return super().forward(x)


class SideBySide(nn.ModuleList):
    """Several networks that see the same input; their outputs stand side by side: (B, in) -> (B, out_1 + out_2 + ...).

    SideBySide(MLP(a, b), MLP(a, b)) gives an affine coupling separate networks for shift and log-scale.
    """

    def __init__(self, *networks):
        super().__init__(networks)

    def forward(self, x, context=None):
        return torch.cat([network(x, context) for network in self], dim=1)
