import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, randomise
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from flowlib.coupling import AffineCoupling
from flowlib.networks import MLP, ConcatNet, ConvResNet, WeightNormConv2d


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


def test_networks_are_sliced_like_the_modules_that_they_are():
    mlp, both = MLP(2, 3, (5, 4)), ConcatNet([MLP(2, 1), MLP(2, 2), MLP(2, 3)])
    assert type(mlp[:2]) is nn.Sequential
    assert mlp[:2](torch.randn(6, 2)).shape == (6, 5)
    assert mlp[-1] is list(mlp)[-1]
    assert both[1:](torch.randn(6, 2)).shape == (6, 5)
    assert both[-1] is list(both)[-1]


# ConvResNet


def manual_conv_resnet(network, x, mask):
    """The same network from its parts: torch's batch norms and plain convolutions."""

    def convolution(module, x):
        g, v = module.parametrizations.weight.original0, module.parametrizations.weight.original1
        kernels = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, kernels, module.bias, padding=v.shape[-1] // 2)

    def half_block(norm, module, x):
        return convolution(module, norm(x).relu())

    x = network.normalise(x) * (1 if mask is None else 2)
    seen = torch.cat([x.relu(), (-x).relu(), *([] if mask is None else [mask])], dim=1)
    h = convolution(network.conv_in, seen)
    total = convolution(network.skips[0], h)
    for block, skip in zip(network.blocks, network.skips[1:]):
        h = h + half_block(block[3], block[5], half_block(block[0], block[2], h))
        total = total + convolution(skip, h)
    return half_block(network.conv_out[0], network.conv_out[2], total)


@pytest.mark.parametrize("checkerboard", [False, True])
def test_a_conv_resnet_doubles_masked_images_and_adds_up_its_skips(checkerboard):
    network = randomise(ConvResNet(4, 2, 6, 2, checkerboard), size=0.5).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    parts = (x[:, :3], x[:, 3:]) if checkerboard else (x, None)
    expected = manual_conv_resnet(network, *parts)
    assert expected.abs().max() > 0.1
    assert_close(network(x).detach(), expected.detach(), 1e-10)


def test_convolutions_see_their_input_channels_last_and_their_weights_stay_as_they_are():
    network, seen = ConvResNet(4, 2, 6, 1), []
    network.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(torch.randn(3, 4, 5, 5))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_weight_norm_is_that_of_torch_by_state_and_by_value():
    torch.manual_seed(0)
    theirs = weight_norm(nn.Conv2d(3, 5, 3, padding=1))
    torch.manual_seed(0)
    ours, x = WeightNormConv2d(3, 5, 3), torch.randn(2, 3, 4, 4)
    assert [name for name, _ in ours.named_parameters()] == [
        n for n, _ in theirs.named_parameters()
    ]
    assert torch.equal(ours(x), theirs(x))
    ours.load_state_dict({name: 2 * tensor for name, tensor in theirs.state_dict().items()})
    theirs.load_state_dict({name: 2 * tensor for name, tensor in theirs.state_dict().items()})
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("context_features", [0, 2])
def test_outputs_side_by_side_are_those_of_the_networks(context_features):
    networks = [random_mlp(3, width, context_features=context_features) for width in (2, 1, 4)]
    x, context = torch.randn(5, 3), torch.randn(5, context_features) if context_features else None
    assert torch.equal(
        ConcatNet(networks)(x, context),
        torch.cat([network(x, context) for network in networks], dim=1),
    )


def test_side_by_side_gives_a_coupling_separate_networks_for_shift_and_log_scale():
    shift, log_scale = random_mlp(1, 2), random_mlp(1, 2)
    coupling = AffineCoupling(torch.tensor([True, False, False]), ConcatNet([shift, log_scale]))
    kept = torch.randn(6, 1)
    t, s = coupling.shift_and_log_scale(kept)
    assert torch.equal(t, shift(kept))
    assert torch.equal(s, torch.tanh(log_scale(kept)))
    assert sum(p.numel() for p in coupling.network.parameters()) == sum(
        p.numel() for n in (shift, log_scale) for p in n.parameters()
    )


def test_networks_side_by_side_share_nothing():
    first, second = random_mlp(3, 2), random_mlp(3, 2)
    ConcatNet([first, second])(torch.randn(4, 3))[:, :2].sum().backward()
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert not any(
        parameter.grad.any() for parameter in second.parameters() if parameter.grad is not None
    )
