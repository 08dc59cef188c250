"""Real NVP in a hundred lines: couplings learn the two moons, and the truth judges them in nats.

Run it: python realnvp_in_100_lines.py (SEED=1 sets the seed, FLOWLIB_FAST=1 makes it a short try).
x data, z latent; x_a passes a coupling and conditions, x_b is changed; s log-scale, t shift.
"""

import math
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

NOISE, COUPLINGS, WIDTH, BATCH = 0.05, 8, 64, 1_024
STEPS = 1_500 if os.environ.get("FLOWLIB_FAST", "0") in ("", "0") else 40


# 1. Data of known density: the angle on one of two half circles is uniform, the noise is Gaussian.
def half_circles(angle):
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    return upper, torch.tensor([1.0, 0.5]) - upper


def sample_data(n):
    upper, lower = half_circles(math.pi * torch.rand(n))
    return torch.where(torch.rand(n, 1) < 0.5, upper, lower) + NOISE * torch.randn(n, 2)


def log_p_true(x, n=500):  # the noise's density, averaged over n angles on each half circle
    points = torch.cat(half_circles(math.pi * (torch.arange(n) + 0.5) / n))
    log_noise = -0.5 * (torch.cdist(x, points) / NOISE) ** 2 - math.log(2 * math.pi * NOISE**2)
    return log_noise.logsumexp(dim=1) - math.log(len(points))


# 2. A coupling: z_a = x_a, z_b = x_b exp(s(x_a)) + t(x_a). Undoing it needs no inverse of s or t.
class Coupling(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)  # 1 for x_a, 0 for x_b
        hidden = [nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        self.network = nn.Sequential(*hidden, nn.Linear(WIDTH, 4))
        nn.init.zeros_(self.network[-1].weight)  # so that training begins with the identity
        nn.init.zeros_(self.network[-1].bias)

    def s_and_t(self, x):
        s, t = self.network(self.mask * x).chunk(2, dim=1)
        return (1 - self.mask) * s.tanh(), (1 - self.mask) * t  # both 0 where x passes through

    def forward(self, x):
        s, t = self.s_and_t(x)
        return x * s.exp() + t, s.sum(dim=1)  # z, and log |det dz/dx|: the Jacobian is triangular

    def inverse(self, z):
        s, t = self.s_and_t(z)  # the same s and t, since z_a = x_a
        return (z - t) * (-s).exp()


# 3. The flow: couplings whose masks take turns. Their log-dets add up; the base density is normal.
class Flow(nn.ModuleList):
    def forward(self, x):
        log_det = 0
        for coupling in self:
            x, change = coupling(x)
            log_det = log_det + change
        return x, log_det

    def inverse(self, z):
        for coupling in reversed(self):
            z = coupling.inverse(z)
        return z

    def log_prob(self, x):
        z, log_det = self(x)
        return -0.5 * z.square().sum(dim=1) - math.log(2 * math.pi) + log_det


# 4. Maximum likelihood, by Adam: the learning rate warms up, then falls to nothing along a cosine.
torch.manual_seed(int(os.environ.get("SEED", "0")))
flow = Flow(Coupling(torch.tensor([1.0, 0.0]).roll(k)) for k in range(COUPLINGS))
adam = torch.optim.Adam(flow.parameters(), betas=(0.9, 0.99))
rate = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, STEPS, pct_start=0.1, cycle_momentum=False)
for _ in range(STEPS):
    loss = -flow.log_prob(sample_data(BATCH)).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    rate.step()

# 5. The gap to the truth, E[log p_true(x) - log p(x)] over fresh data: 0 for a perfect flow.
with torch.no_grad():
    x, samples = sample_data(20_000), flow.inverse(torch.randn(2_000, 2))
    z, gap = flow(x[:2_000])[0], log_p_true(x) - flow.log_prob(x)
print(f"gap to the truth: {gap.mean():.4f} ± {gap.std() / len(x) ** 0.5:.4f} nats")

fig, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
panels = {"data x": x[:2_000], "latents z = f(x)": z, "samples: noise through the inverse": samples}
for ax, (title, points) in zip(axes, panels.items()):
    ax.scatter(*points.T, s=2, color="#0072B2" if title == "data x" else "#D55E00")
    ax.set(title=title, aspect="equal")
fig.savefig("realnvp_in_100_lines.png", dpi=150)
