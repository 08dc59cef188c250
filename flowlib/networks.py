"""Networks that compute shift and scale inside a coupling layer. They may be anything: nobody inverts them."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["MLP", "ConcatNet", "ConvResNet"]


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
            raise ValueError(
                f"hidden must list the widths of the hidden layers, such as (64, 64), got {hidden!r}"
            )
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
                raise ValueError(
                    f"this network was built for a context of {self.context_features} features; none was given"
                )
            x = torch.cat([x, context], dim=1)
        return super().forward(x)


class ConcatNet(nn.ModuleList):
    """Several networks that see the same input; their outputs stand side by side: (B, in) -> (B, out_1 + out_2 + ...).

    ConcatNet(MLP(a, b), MLP(a, b)) gives an affine coupling separate networks for shift and log-scale.
    """

    def __init__(self, *networks):
        super().__init__(networks)

    def forward(self, x, context=None):
        return torch.cat([network(x, context) for network in self], dim=1)


class ConvResNet(nn.Module):
    """The convolutional residual network of Real NVP's image couplings (section 4.1; details from the authors' code).

    Input batch-normalised and as [x, -x] through a ReLU, so that both signs survive; residual blocks with batch and weight
    norm; a 1 x 1 convolution of every block's output is added to an accumulator, and the output is computed from that alone.
    With `checkerboard` the last input channel is the mask of a checkerboard coupling: it is passed on as it is, and the image is
    doubled, as half of it is masked out. The last layer starts at zero, so a coupling built on it starts as the identity.

    Shapes: x (B, in_channels, H, W), context (B, context_channels, H, W) or None -> (B, out_channels, H, W); with `checkerboard`,
    in_channels counts the mask.
    """

    def __init__(
        self, in_channels, out_channels, width, blocks, checkerboard=False, context_channels=0
    ):
        super().__init__()
        colours = in_channels - checkerboard
        self.checkerboard = checkerboard
        self.normalise = nn.BatchNorm2d(colours, affine=False)
        self.conv_in = _conv(2 * colours + checkerboard + context_channels, width, 3)
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.skips = nn.ModuleList(_conv(width, width, 1) for _ in range(blocks + 1))
        self.conv_out = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), _conv(width, out_channels, 1)
        )
        nn.init.zeros_(self.conv_out[-1].parametrizations.weight.original0)
        nn.init.zeros_(self.conv_out[-1].bias)

    def forward(self, x, context=None):
        colours, mask = (x[:, :-1], x[:, -1:]) if self.checkerboard else (x, x[:, :0])
        colours = self.normalise(colours) * (2 if self.checkerboard else 1)
        seen = torch.cat(
            [colours.relu(), (-colours).relu(), mask, *([] if context is None else [context])],
            dim=1,
        )
        x = self.conv_in(seen.contiguous(memory_format=torch.channels_last))
        total = self.skips[0](x)
        for block, skip in zip(self.blocks, self.skips[1:]):
            x, total = self.residual(block, skip, x, total)
        return self.conv_out(total)

    @staticmethod
    def residual(block, skip, x, total):
        """x with what the block adds to it, and the accumulator with what the skip adds of that."""
        x = x + block(x)
        return x, total + skip(x)


def _conv(n_in, n_out, size):
    return weight_norm(nn.Conv2d(n_in, n_out, size, padding=size // 2))


def _block(width):
    half = lambda: [nn.BatchNorm2d(width), nn.ReLU(inplace=True), _conv(width, width, 3)]  # noqa: E731
    return nn.Sequential(*half(), *half())
