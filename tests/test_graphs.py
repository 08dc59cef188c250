"""Compiled blocks and captured steps compute what plain ones do. A CUDA graph is played here by a
stand-in that runs the recorded function again; benchmarks/gpu.py checks the real one on a GPU."""

import contextlib
import copy
import logging

import pytest
import torch

from flowlib import graphs, models
from flowlib.losses import nll


def small_flow(classes=0):
    """A flow of 4 x 4 images, convolutions, batch norm and all, away from its start."""
    model = {"scales": 1, "width": 4, "blocks": 1, "dequant_couplings": 1, "classes": classes}
    flow = models.realnvp_image((1, 4, 4), **model)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return flow.double().train()


def batch(seed=0, classes=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8, generator=rng)
    noise = torch.rand(x.shape, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (6,), generator=rng) if classes else None
    return x, labels, noise


@pytest.fixture
def compilations():
    """A backend of torch.compile that runs what it is given, and the list of what that was."""
    seen = []

    def backend(module, inputs):
        seen.append(module)
        return module.forward

    return backend, seen


def test_networks_of_a_kind_share_what_is_compiled_and_agree_with_modules(compilations):
    """Those of the couplings see the labels, those of the noise do not."""
    backend, seen = compilations
    plain, classes = small_flow(classes=3), 3
    flow = copy.deepcopy(plain)
    nll(*plain(*batch(0, classes))).backward()
    with graphs.compiled_networks(flow, backend):
        nll(*flow(*batch(0, classes))).backward()
    assert len(seen) == 6  # three parts of networks of two kinds, of which there are five
    for expected, found in zip(plain.parameters(), flow.parameters()):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


def test_the_flow_is_itself_again_afterwards(compilations):
    flow, names = small_flow(), list(small_flow().state_dict())
    with pytest.raises(KeyError), graphs.compiled_networks(flow, compilations[0]):
        raise KeyError
    assert not any(part in vars(module) for module in flow.modules() for part in graphs.PARTS)
    assert list(flow.state_dict()) == names


class Training:
    """A step of Adam with clipping and an average of the weights, as `fit` makes it."""

    def __init__(self, classes=0):
        torch.manual_seed(0)
        self.flow = small_flow(classes)
        self.ema = copy.deepcopy(self.flow)
        self.pull, self.lr = torch.zeros(()), torch.tensor(0.0)
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=self.lr, fused=True)

    def update(self, x, context, noise):
        loss = nll(*self.flow(x, context, noise))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.flow.parameters(), 100.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, weight in zip(self.ema.parameters(), self.flow.parameters()):
                average += self.pull * (weight - average)
        return loss.detach()

    def state(self):
        parts = {"flow": self.flow.state_dict(), "ema": self.ema.state_dict()}
        parts |= self.optimizer.state_dict()["state"]
        return {f"{part}.{name}": t for part, named in parts.items() for name, t in named.items()}

    def run(self, update, steps):
        losses = []
        for step in steps:
            self.lr.fill_(1e-2 / (1 + step))
            self.pull.fill_(1 / (1 + step))
            losses.append(update(*batch(step, self.flow.classes)).clone())
        return losses


def play(function):
    """Stands in for a CUDA graph: what is recorded runs again at every replay."""
    for _ in range(3):
        function()
    result = function()
    return lambda: result.copy_(function()), result


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(graphs, "_record", play)
    monkeypatch.setattr(graphs, "compiled_networks", lambda flow: contextlib.nullcontext())


@pytest.mark.parametrize("classes", [0, 3], ids=["plain", "under labels"])
@pytest.mark.parametrize("first", [0, 2], ids=["from the start", "after two eager steps"])
def test_captured_steps_are_the_steps(stand_in, first, classes):
    eager, graph = Training(classes), Training(classes)
    expected = eager.run(eager.update, range(5))
    losses = graph.run(graph.update, range(first))
    before = {name: t.clone() for name, t in graph.state().items()}
    update = graphs.captured(graph.update, graph.flow, batch(9, classes), graph.state)
    assert update is not graph.update
    for name, tensor in graph.state().items():
        assert torch.equal(tensor, before.get(name, torch.zeros_like(tensor))), name
    losses += graph.run(update, range(first, 5))
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(graph.state(), eager.state(), rtol=1e-7, atol=1e-9)


def test_a_captured_step_reads_its_own_copy_of_the_batch(stand_in):
    training, x = Training(), batch()[0]
    update = graphs.captured(training.update, training.flow, batch(), training.state)
    given = x.clone(), None, batch()[2]
    loss = update(*given).clone()
    assert torch.equal(given[0], x)
    assert update(255 - x, None, given[2]) is update(*batch(seed=5))  # one place for every loss
    assert loss != update(255 - x, None, given[2])


def test_where_capture_fails_the_plain_step_goes_on(monkeypatch, caplog):
    def refuse(function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs, "_record", refuse)
    monkeypatch.setattr(graphs, "compiled_networks", lambda flow: contextlib.nullcontext())
    training = Training()
    before = {name: t.clone() for name, t in training.state().items()}
    with caplog.at_level(logging.WARNING):
        update = graphs.captured(training.update, training.flow, batch(), training.state)
    assert update == training.update
    (line,) = caplog.messages
    assert line.endswith("slower: operation not permitted when stream is capturing")
    for name, tensor in training.state().items():
        assert torch.equal(tensor, before.get(name, torch.zeros_like(tensor))), name
