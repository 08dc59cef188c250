"""The broken parts of notebook 04, under names that give nothing away: diagnose first, then read.

The notebook prints the source of each after its symptoms.
"""

import torch
from torch import nn

from flowlib import losses, masks
from flowlib.bijections import Bijection, SoftLog
from flowlib.coupling import AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.norms import BatchNorm


def loss_1(z, log_det):
    return -log_det.mean()


class Coupling2(Bijection):
    def __init__(self, mask, network):
        super().__init__()
        self.register_buffer("b", mask.float())
        self.network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4))

    def shift_and_log_scale(self, kept):
        shift, raw = self.network(kept).chunk(2, dim=1)
        return shift, torch.tanh(raw)

    def forward(self, x, context=None):
        shift, s = self.shift_and_log_scale(self.b * x)
        z = self.b * x + (1 - self.b) * (x * s.exp() + shift)
        return z, (self.b * s).sum(1)

    def inverse(self, z, context=None):
        shift, s = self.shift_and_log_scale(self.b * z)
        return self.b * z + (1 - self.b) * (z - shift) * (-s).exp(), -(self.b * s).sum(1)


def masks_3():
    return [masks.alternating(2) for i in range(4)]


class Coupling4(AffineCoupling):
    def join(self, kept, changed):
        return torch.cat([kept, changed], dim=1)


def prepare_5(images):
    return images / 256


def norm_6():
    return BatchNorm(2, momentum=0.001)


class Norm6(BatchNorm):
    """Always in training mode."""

    def forward(self, x, context=None):
        was, self.training = self.training, True
        out = super().forward(x)
        self.training = was
        return out


def loss_7(z, log_det):
    return losses.nll(z, -log_det)


class Coupling7(AffineCoupling):
    def forward(self, x, context=None):
        z, log_det = super().forward(x, context)
        return z, -log_det


class Coupling8(AffineCoupling):
    def shift_and_log_scale(self, kept, context=None):
        return self.run_network(kept, context).chunk(2, dim=1)


class Coupling9(AffineCoupling):
    """The log-scale is rescale * tanh(raw); raw comes from a layer that starts at zero."""

    def __init__(self, mask, network):
        super().__init__(mask, network)
        nn.init.zeros_(self.rescale)


class Noise11(Dequantize):
    def draw_noise(self, shape, generator=None):
        return super().draw_noise(shape, generator) / 2


class ActNorm12(Bijection):
    def __init__(self):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.ready = False

    def forward(self, x, context=None):
        if not self.ready:
            self.log_scale.data = -x.std(0).log().detach()
            self.shift.data = x.mean(0).detach()
            self.remember()
        return (x - self.shift) * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z, context=None):
        return z * (-self.log_scale).exp() + self.shift, -self.log_scale.sum().expand(len(z))

    def remember(self):
        self.ready = True


class Remembering(ActNorm12):
    """The same, repaired."""

    def __init__(self):
        super().__init__()
        del self.ready
        self.register_buffer("ready", torch.tensor(False))

    def remember(self):
        self.ready.fill_(True)


class SoftLog13(SoftLog):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x, -log_det
