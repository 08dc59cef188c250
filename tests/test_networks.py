import pytest
import torch
from torch import nn

from flowlib.coupling import AffineCoupling
from flowlib.networks import MLP, ConcatNet


@pytest.mark.parametrize("hidden", [(), (8,), [16, 4]])
@pytest.mark.parametrize("context_features", [0, 2])
def test_mlp_maps_to_out_features_and_starts_at_zero(hidden, context_features):
    network = MLP(3, 5, hidden, context_features)
    out = network(torch.randn(7, 3), torch.randn(7, context_features) if context_features else None)
    assert torch.equal(out, torch.zeros(7, 5))
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [*hidden, 5]


def test_mlp_may_live_on_its_context_alone():
    network = MLP(0, 2, (4,), context_features=3)
    assert network(torch.zeros(6, 0), torch.randn(6, 3)).shape == (6, 2)


def test_mlp_leaves_its_input_alone():
    x = torch.randn(4, 3)
    before = x.clone()
    MLP(3, 2)(x)
    assert torch.equal(x, before)


def test_mlp_sees_its_context():
    mlp = MLP(1, 1, (), context_features=2)
    nn.init.ones_(mlp[0].weight)
    assert mlp(torch.tensor([[1.0]]), torch.tensor([[10.0, 100.0]])).item() == 111


def test_a_missing_context_is_refused():
    with pytest.raises(ValueError, match="built for a context of 2 features; none was given"):
        MLP(3, 1, context_features=2)(torch.zeros(1, 3))


def test_an_mlp_without_any_input_is_refused():
    with pytest.raises(ValueError, match="at least one input"):
        MLP(0, 2)


def random_mlp(*sizes, **settings):
    network = MLP(*sizes, **settings)
    nn.init.normal_(network[-1].weight)
    return network


@pytest.mark.parametrize("context_features", [0, 2])
def test_outputs_side_by_side_are_those_of_the_networks(context_features):
    networks = [random_mlp(3, width, context_features=context_features) for width in (2, 1, 4)]
    x, context = torch.randn(5, 3), torch.randn(5, context_features) if context_features else None
    assert torch.equal(
        ConcatNet(*networks)(x, context),
        torch.cat([network(x, context) for network in networks], dim=1),
    )


def test_side_by_side_gives_a_coupling_separate_networks_for_shift_and_log_scale():
    shift, log_scale = random_mlp(1, 2), random_mlp(1, 2)
    coupling = AffineCoupling(torch.tensor([True, False, False]), ConcatNet(shift, log_scale))
    kept = torch.randn(6, 1)
    t, s = coupling.shift_and_log_scale(kept)
    assert torch.equal(t, shift(kept))
    assert torch.equal(s, torch.tanh(log_scale(kept)))
    assert sum(p.numel() for p in coupling.network.parameters()) == sum(
        p.numel() for n in (shift, log_scale) for p in n.parameters()
    )


def test_networks_side_by_side_share_nothing():
    first, second = random_mlp(3, 2), random_mlp(3, 2)
    ConcatNet(first, second)(torch.randn(4, 3))[:, :2].sum().backward()
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert not any(
        parameter.grad.any() for parameter in second.parameters() if parameter.grad is not None
    )
