"""Networks that compute shift and scale in a coupling. Nobody inverts them: anything goes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MLP", "ConcatNet", "ConvResNet"]


class MLP(nn.Sequential):
    """A ReLU network from what passes through (and the context) to a coupling's parameters.

    Hidden layers after the first start as He et al. (arXiv 1502.01852) advise; the last starts at
    zero, so that a coupling built on it starts as the identity. Slices are of `nn.Sequential`.

    Shapes: x (B, in_features), context (B, context_features) or None -> (B, out_features).
    >>> MLP(1, 2, hidden=(8,))(torch.randn(3, 1)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: tuple = (64, 64), context_features=0
    ):
        if in_features + context_features < 1:
            raise ValueError("an MLP needs at least one input: in_features + context_features is 0")
        if not isinstance(hidden, (tuple, list)):
            raise ValueError(f"hidden must list the widths of the hidden layers, got {hidden!r}")
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

    def __getitem__(self, index):
        return nn.Sequential(*self)[index]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.context_features:
            if context is None:
                expected = f"a context of {self.context_features} features"
                raise ValueError(f"this network was built for {expected}; none was given")
            x = torch.cat([x, context], dim=1)
        return super().forward(x)


class ConcatNet(nn.ModuleList):
    """A list of networks that see the same input; outputs stand side by side, (B, sum of out).

    >>> ConcatNet([MLP(3, 2), MLP(3, 2)])(torch.randn(5, 3)).shape  # shift and scale apart
    torch.Size([5, 4])
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.cat([network(x, context) for network in self], dim=1)


class ConvResNet(nn.Module):
    """The convolutional residual network of Real NVP (section 4.1; details: the authors' code).

    Input batch-normalised and as [x, -x] through a ReLU, so that both signs survive; residual
    blocks with batch and weight norm; a 1 x 1 convolution of every block's output is added to an
    accumulator, and the output is computed from that alone. With `checkerboard` the last input
    channel is a mask, passed on as it is, and the image is doubled, as half of it is masked out.
    Starts at zero, like `MLP`. A context is an image (B, context_channels, H, W), seen beside x, or
    vectors (B, context_features), of which a linear map scales and shifts what the blocks and the
    output see, channel by channel, from a start at the identity (FiLM, arXiv 1709.07871).
    Shapes: x (B, in_channels, H, W), the mask counted -> (B, out_channels, H, W).
    >>> ConvResNet(3, 6, width=8, blocks=1)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 6, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        blocks: int,
        checkerboard: bool = False,
        context_channels: int = 0,
        context_features: int = 0,
    ):
        super().__init__()
        colours = in_channels - checkerboard
        self.checkerboard, self.context_channels = checkerboard, context_channels
        self.normalise = nn.BatchNorm2d(colours, affine=False)
        self.conv_in = WeightNormConv2d(2 * colours + checkerboard + context_channels, width, 3)
        half = lambda: _norm_relu_conv(width, width, 3)  # noqa: E731
        self.blocks = nn.ModuleList(nn.Sequential(*half(), *half()) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv2d(width, width, 1) for _ in range(blocks + 1))
        self.conv_out = nn.Sequential(*_norm_relu_conv(width, out_channels, 1))
        nn.init.zeros_(self.conv_out[-1].parametrizations.weight.original0)
        nn.init.zeros_(self.conv_out[-1].bias)
        self.film = None
        if context_features:
            self.film = MLP(0, 2 * width * (blocks + 1), (), context_features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        films = [None] * len(self.skips)
        if self.film is not None:
            film = self.film(x[:, :0].flatten(1), context)[:, :, None, None]
            films = film.chunk(len(self.skips), dim=1)
        context = context if self.context_channels else None  # seen beside x
        enter = self.normalise, self.conv_in, self.skips[0]
        x, total = self.enter(*enter, x, context, self.checkerboard)
        for block, skip, film in zip(self.blocks, self.skips[1:], films):
            x, total = self.residual(block, skip, x, total, film)
        return self.leave(self.conv_out, total, films[-1])

    @staticmethod
    def enter(normalise, conv_in, skip, x, context, checkerboard):
        """The features of x, and the accumulator with what the first skip adds."""
        colours, mask = (x[:, :-1], x[:, -1:]) if checkerboard else (x, x[:, :0])
        colours = normalise(colours) * (2 if checkerboard else 1)
        seen = [colours.relu(), (-colours).relu(), mask, *([] if context is None else [context])]
        seen = torch.cat(seen, dim=1).movedim(1, -1).contiguous()  # channels last, which is faster
        x = conv_in(seen.movedim(-1, 1))
        return x, skip(x)

    @staticmethod
    def residual(block, skip, x, total, film):
        """x with what the block adds to it, and the accumulator with what the skip adds of that."""
        x = x + block(_modulate(x, film))
        return x, total + skip(x)

    @staticmethod
    def leave(conv_out, total, film):
        """What the network returns, from the accumulator alone."""
        return conv_out(_modulate(total, film))


class WeightNormConv2d(nn.Conv2d):
    """Kernels g v / |v| (arXiv 1602.07868): torch's `weight_norm`, name by name, but picklable."""

    def __init__(self, n_in: int, n_out: int, size: int):
        super().__init__(n_in, n_out, size, padding=size // 2)
        v = self.weight
        del self.weight
        self.parametrizations = nn.ModuleDict({"weight": nn.Module()})
        self.parametrizations.weight.original0 = nn.Parameter(torch.norm_except_dim(v).detach())
        self.parametrizations.weight.original1 = v

    def forward(self, x: Tensor) -> Tensor:
        weight = self.parametrizations.weight
        g, v = weight.original0, weight.original1
        if torch.compiler.is_compiling():  # of this a compiler fuses the gradient, too
            kernels = v * (g / torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True))
        else:
            kernels = torch._weight_norm(v, g)
        return F.conv2d(x, kernels, self.bias, padding=self.padding)


def _modulate(x, film):
    """Features x (B, C, H, W), scaled and shifted by film (B, 2 C, 1, 1) if there is a context."""
    if film is None:
        return x
    scale, shift = film.chunk(2, dim=1)
    return x * (1 + scale) + shift


def _norm_relu_conv(n_in, n_out, size):
    return nn.BatchNorm2d(n_in), nn.ReLU(inplace=True), WeightNormConv2d(n_in, n_out, size)
