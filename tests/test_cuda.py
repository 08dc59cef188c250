"""What would happen on a CUDA GPU, on any machine.

Torch's fake tensors have a shape, a dtype and a device, but no values. They refuse to mix devices.
A dispatch mode on top refuses what a CUDA graph cannot hold: a copy between the host and the
device, and everything for which the host must wait until a value is known.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowlib import models
from flowlib.bijections import Bijection, Squeeze
from flowlib.losses import label_nll, nll
from flowlib.norms import initialising

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal", "unique")
BUILDERS = {
    "nice_2d": lambda: models.nice_2d(depth=2, hidden=(4,)),
    "realnvp_2d": lambda: models.realnvp_2d(depth=2, hidden=(4,)),
    "conditional": lambda: models.realnvp_2d(depth=2, hidden=(4,), context_features=3),
    "realnvp_mlp": lambda: models.realnvp_mlp(
        (1, 4, 4), depth=2, hidden=(4,), norm="actnorm", tau=9
    ),
    "realnvp_mlp, batch norm": lambda: models.realnvp_mlp(
        (1, 4, 4), depth=2, hidden=(4,), mask="random", norm="batchnorm", separate=False, bits=5
    ),
    "realnvp_image": lambda: models.realnvp_image((1, 4, 4), scales=2, width=4, blocks=1),
    "labels in the base": lambda: models.realnvp_image(
        (1, 4, 4), scales=1, width=4, blocks=1, classes=3, context_networks=False
    ),
    "learned noise": lambda: models.realnvp_image(
        (3, 4, 4), scales=1, width=4, blocks=1, doubling=False, dequant_couplings=1
    ),
    "images under labels": lambda: models.realnvp_image(
        (1, 4, 4), scales=1, width=4, blocks=1, dequant_couplings=1, classes=3
    ),
    "images under vectors": lambda: models.realnvp_image(
        (1, 4, 4), scales=1, width=4, blocks=1, context_features=3
    ),
}


class NeverWaiting(TorchDispatchMode):
    """Refuse copies between host and device, reading of values, and shapes that depend on them."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name, out = op.__name__.split(".")[0], op(*args, **(kwargs or {}))
        given = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        made = {leaf.device.type for leaf in tree_leaves(out) if torch.is_tensor(leaf)}
        masks = name.startswith("index") and any(
            torch.is_tensor(leaf) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:])
        )
        if given == {"cpu"} == made | given:
            return out  # Adam counts its steps on the host
        if name in WAITS or masks or (given and made and given != made):
            raise AssertionError(f"{op} waits for the device: {given} -> {made}")
        if name.startswith("index") and "cpu" in given:
            raise AssertionError(f"{op} copies an index from the host")
        return out


def initialised(flow):
    with initialising(flow):
        images = torch.randint(0, 32, (64, *flow.shape), dtype=torch.uint8)
        flow(images if flow.dequantize else torch.randn(64, 2), *context(flow, 64, "cpu"))
    return flow


@pytest.fixture(scope="module", params=BUILDERS)
def made(request):
    """A flow whose parameters and buffers claim to lie on a GPU, and the mode that plays one."""
    flow, mode = initialised(BUILDERS[request.param]()), FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        to_gpu(flow, mode)
    return flow, mode


@pytest.fixture
def flow(made):
    flow, mode = made
    with mode:
        yield flow


def to_gpu(module, mode):
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = mode.from_tensor(parameter.data).to("cuda")
                part._parameters[name] = torch.nn.Parameter(fake)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer).to("cuda")


def context(flow, n, device="cuda"):
    if flow.classes:
        return [torch.zeros(n, dtype=torch.long, device=device)]
    return [torch.randn(n, 3, device=device)] if flow.context_features else []


def batch(flow, n=4, device="cuda"):
    if flow.dequantize is None:
        return [torch.randn(n, 2, device=device), *context(flow, n, device)]
    images = torch.empty(n, *flow.shape, dtype=torch.uint8, device=device)
    given = context(flow, n, device) or [None]
    return [images, *given, torch.rand(images.shape, device=device)]


def test_forward_never_waits_for_the_device(flow):
    given = batch(flow.train())
    with NeverWaiting():
        loss = nll(*flow(*given))
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("name", BUILDERS)
def test_a_step_of_adam_never_waits_for_the_device(name):
    """Fake tensors cannot go backwards without a GPU; the meta device can, and has no values."""
    flow = initialised(BUILDERS[name]()).to("meta").train()
    optimizer, given = torch.optim.Adam(flow.parameters(), foreach=True), batch(flow, device="meta")
    with NeverWaiting():
        z, log_det = flow(*given)
        loss = nll(z, log_det)
        if name == "labels in the base":
            loss = loss + label_nll(flow, z, log_det, torch.zeros(4, 3, device="meta"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad.device.type == "meta" for parameter in flow.parameters())


def test_the_inverse_never_waits_for_the_device(flow):
    z = torch.randn(4, flow.shape.numel(), device="cuda")
    with NeverWaiting():
        x, log_det = flow.eval().inverse(z, *context(flow, 4))
    assert x.device.type == log_det.device.type == "cuda"


def test_every_other_door_stays_on_the_device(flow):
    x, *more = batch(flow.eval())[:2]
    for out in (
        flow.log_prob(x, *more),
        flow.encode(x, *more),
        flow.intermediates(x, *more)[-1],
        flow.sample(4, context=next(iter(more), None)),
        flow.sample(4, seed=0, context=next(iter(more), None)),  # drawn on the host, then moved
        flow.draw_latents(4),
    ):
        assert out.device.type == "cuda"


def test_draws_are_made_on_the_device_of_the_generator(flow, monkeypatch):
    """A real CUDA generator cannot be had here: what the flow asks torch for is looked at."""
    asked = []
    monkeypatch.setattr("flowlib.flow.randn", lambda shape, generator, like: asked.append(like))
    monkeypatch.setattr("flowlib.dequantize.rand", lambda *args: asked.append(args[2]) or args[2])
    flow.draw_latents(4), flow.draw_noise(4)
    assert {like.device.type for like in asked} == {"cuda"}


def test_data_left_behind_on_the_cpu_follow_the_flow(flow):
    x, *more = (None if part is None else part.cpu() for part in batch(flow))
    z, log_det = flow(x, *more)
    assert z.device.type == log_det.device.type == "cuda"


class ListIndex(Bijection):
    def forward(self, x, context=None):
        return x[:, [1, 0]], x.new_zeros(len(x))


class HostConstant(Bijection):
    def forward(self, x, context=None):
        return x * torch.tensor(2.0).to(x.device), x.new_zeros(len(x))


class BooleanIndex(Bijection):
    def forward(self, x, context=None):
        return x[:, torch.ones(2, dtype=torch.bool, device=x.device)], x.new_zeros(len(x))


class Branch(Bijection):
    def forward(self, x, context=None):
        return (x if (x > 0).all() else -x), x.new_zeros(len(x))


@pytest.mark.parametrize("layer", [ListIndex, HostConstant, BooleanIndex, Branch])
def test_a_layer_that_waits_for_the_device_is_found(layer):
    with (
        FakeTensorMode(),
        pytest.raises(Exception, match=r"waits for|copies an index|data-dep|nonzero|_local"),
    ):
        x = torch.randn(4, 2, device="cuda")
        with NeverWaiting():
            layer()(x)
    with FakeTensorMode():
        x = torch.randn(4, 1, 4, 4, device="cuda")
        with NeverWaiting():
            Squeeze("checkerboard").inverse(Squeeze("checkerboard")(x)[0])
