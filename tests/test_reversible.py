"""Backpropagation by inversion gives autograd's gradients, from the output of the chain alone."""

import pytest
import torch
from helpers import randomise
from torch import nn

from flowlib import masks, models, training
from flowlib.bijections import Chain, Diagonal, Inverse, Permute, SoftLog, Squeeze
from flowlib.coupling import AdditiveCoupling, AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.losses import nll
from flowlib.networks import MLP, ConvResNet
from flowlib.norms import ActNorm, BatchNorm
from flowlib.reversible import Reversible


def vectors(depth=4):
    """Layers of every kind for 6 dimensions with a context of 2, away from their start."""
    torch.manual_seed(1)
    layers = [ActNorm(6)]
    for i in range(depth):
        network = MLP(3, 6 if i % 2 else 3, (16,), context_features=2)
        coupling = AffineCoupling if i % 2 else AdditiveCoupling
        layers.append(coupling(masks.alternating(6, flip=i % 4 > 1), network))
    layers += [SoftLog(1.0), Permute([5, 3, 1, 0, 2, 4]), Inverse(Diagonal(6)), Chain(Diagonal(6))]
    return [randomise(layer, 0.3).double().train() for layer in layers]


def gradients(kind, layers, x, context=None):
    """Of weights, input and context, through the output and through the log-determinant."""
    chain = kind(*layers)
    given = [t for t in (x, context) if t is not None and t.requires_grad]
    wanted = [*given, *(p for p in chain.parameters() if p.requires_grad)]
    z, log_det = chain(x, context)
    loss = z.sin().sum() + (log_det * torch.linspace(-1, 2, len(x))).square().sum()
    return [z, log_det, *torch.autograd.grad(loss, wanted)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_of_weights_input_and_context_are_those_of_autograd():
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    context = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    expected = gradients(Chain, vectors(), x, context)
    assert all(grad.abs().max() > 1e-3 for grad in expected)
    assert_same(gradients(Reversible, vectors(), x, context), expected)


def test_frozen_weights_and_a_layer_used_twice():
    layers = vectors()
    layers[2].requires_grad_(False)
    layers.insert(4, layers[1])
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    context = torch.randn(7, 2, dtype=torch.float64)
    assert_same(*[gradients(kind, layers, x, context) for kind in (Reversible, Chain)])


def test_gradcheck():
    chain = Reversible(*[layer for layer in vectors() if not isinstance(layer, ActNorm)])
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(chain, (x, context))


def images(depth=4):
    """Convolutional couplings with batch norms in their networks, in training mode."""
    torch.manual_seed(2)
    layers = [Squeeze()]
    for i in range(depth):
        board = masks.checkerboard(2, 2, flip=i % 2 == 1)
        layers.append(AffineCoupling(board, ConvResNet(5, 8, 4, blocks=1, checkerboard=True)))
    return [randomise(layer, 0.3).double().train() for layer in layers]


def test_batch_norms_inside_networks_train_as_they_do_without():
    """Two steps: gradients, and running statistics that the recomputation leaves alone."""
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    plain, reversible = images(), images()
    for _ in range(2):
        assert_same(gradients(Reversible, reversible, x), gradients(Chain, plain, x))
    for mine, theirs in zip(reversible, plain, strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-9)
        norms = [m for m in mine.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.track_running_stats for m in norms)


def stored(chain, x):
    """Bytes that autograd keeps for the backward pass, each storage once, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in chain.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chain(x)
    return sum(size for _, size in seen.values())


def test_what_is_stored_does_not_grow_with_depth():
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    plain = [stored(Chain(*images(depth)), x) for depth in (4, 16)]
    reversible = [stored(Reversible(*images(depth)), x) for depth in (4, 16)]
    assert plain[1] > 3 * plain[0]
    assert reversible[1] == reversible[0] == x.nbytes  # the output


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (BatchNorm(6), "BatchNorm"),
        (Dequantize(), "Dequantize"),
        (Inverse(BatchNorm(6)), "BatchNorm"),
        (AdditiveCoupling(masks.halves(6), nn.Sequential(MLP(3, 3), nn.Dropout())), "Dropout"),
    ],
)
def test_refuses_what_its_inverse_does_not_undo(layer, name):
    with pytest.raises(ValueError, match=f"^{name} has no inverse in training: not Reversible"):
        Reversible(Diagonal(6), layer)(torch.zeros(4, 6))


def test_takes_batch_norm_in_evaluation_mode():
    layers = [randomise(BatchNorm(6)).double(), *vectors(2)]
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    context = torch.randn(7, 2, dtype=torch.float64)
    assert_same(*[gradients(kind, layers, x, context) for kind in (Reversible, Chain)])


def test_refuses_weights_that_changed_between_the_passes():
    chain = Reversible(Diagonal(2), Diagonal(2))
    z, _ = chain(torch.ones(3, 2))
    with torch.no_grad():
        chain[0].log_scale += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_inverts_slices_and_loads_as_a_chain():
    layers = vectors()
    chain, context = Reversible(*layers), torch.randn(3, 2, dtype=torch.float64)
    z = torch.randn(3, 6, dtype=torch.float64)
    for found, expected in zip(chain.inverse(z, context), Chain(*layers).inverse(z, context)):
        assert torch.equal(found, expected)
    assert isinstance(chain[1:3], Reversible)
    assert list(chain.state_dict()) == list(Chain(*layers).state_dict())


def test_fit_trains_a_flow_with_reversible_scales_as_one_without():
    digits = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8)
    losses = []
    for reversible in (False, True):
        torch.manual_seed(0)
        flow = models.realnvp_image((1, 8, 8), width=4, blocks=1, batch_norm=False).double()
        if reversible:
            multi = flow.bijection[-1]
            multi.scales = nn.ModuleList(Reversible(*scale) for scale in multi.scales)
        settings = {"steps": 5, "batch_size": 16, "lr": 1e-3, "precision": "float32"}
        history = training.fit(flow, digits, seed=0, progress=False, **settings)
        losses.append([*history.loss, nll(*flow(digits, None, 0.5)).item()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][-1] < losses[0][0]
