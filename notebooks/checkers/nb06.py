"""Checkers for the exercises of notebook 06."""

import torch
from torch import nn

from flowlib import budget, losses, masks
from flowlib.bijections import Chain, Inverse, Squeeze
from flowlib.coupling import AffineCoupling
from flowlib.flow import MultiScale
from flowlib.networks import ConvResNet


def check_exercise_1(as_pixels, checkerboard_flow, channel_flow, bits, judged):
    """Channel masks as pixels, and a comparison of channels with checkerboards."""
    if as_pixels is None:
        return print("Exercise 1: not answered yet")
    channel_masks = [
        masks.channels(4),
        masks.channels(4, flip=True),
        torch.tensor([True, False, False, False]),
    ]
    for order in ("channel", "checkerboard"):
        for channels in channel_masks:
            mask = as_pixels(channels, 6, 4, order)
            assert torch.is_tensor(mask) and mask.dtype == torch.bool, (
                "the mask should be a boolean tensor"
            )
            assert mask.shape == (6, 4), (
                f"for 6 x 4 pixels the mask should have shape (6, 4), got {tuple(mask.shape)}"
            )
            squeezed = Squeeze(order)(mask.float()[None, None])[0][0]
            expected = channels.float().view(4, 1, 1).expand(4, 3, 2)
            assert torch.equal(squeezed, expected), (
                f'after Squeeze("{order}") your mask is not that of channels '
                f"{channels.int().tolist()}"
            )
    if checkerboard_flow is None or channel_flow is None or bits is None:
        return print("Exercise 1 (a): passed; (b) is not answered yet")
    flows = {"checkerboard": checkerboard_flow, "channel": channel_flow}
    for name, flow in flows.items():
        couplings = [layer for layer in flow.modules() if isinstance(layer, AffineCoupling)]
        assert len(couplings) == 4, (
            f"the {name} flow should have four couplings, it has {len(couplings)}"
        )
        board = name == "checkerboard"
        assert all(layer.checkerboard == board for layer in couplings), (
            f"the {name} flow should have {'boards' if board else 'masks of channels'} only"
        )
    sizes = [sum(p.numel() for p in flow.parameters()) for flow in flows.values()]
    assert max(sizes) <= 1.05 * min(sizes), (
        f"equal parameters to within 5 %, please: {sizes[0]:,} and {sizes[1]:,}"
    )
    for name, flow in flows.items():
        _check_bits(name, flow, bits[name], judged)
        if budget(True, False):
            assert bits[name] < 5, (
                f"the {name} flow has hardly been trained: {bits[name]:.2f} bits/dim"
            )
    print("Exercise 1: passed")


def check_exercise_2(boards, bad_flow, good_flow, bits, judged):
    """A masking scheme that looks innocent, and what it costs against checkerboards."""
    if boards is None:
        return print("Exercise 2: not answered yet")
    assert len(boards) == 6, f"six boards, got {len(boards)}"
    for i, board in enumerate(boards):
        assert torch.is_tensor(board) and board.dtype == torch.bool and board.shape == (28, 28), (
            f"board {i} should be a boolean (28, 28) tensor"
        )
        assert board.sum() == 392, (
            f"board {i} should let exactly 392 pixels through, it lets {int(board.sum())}"
        )
    equal = [(i, j) for j in range(6) for i in range(j) if torch.equal(boards[i], boards[j])]
    assert not equal, (
        f"no two boards may be equal; boards {equal[0][0]} and {equal[0][1]} are" if equal else ""
    )
    never = int((sum((~board).int() for board in boards) == 0).sum())
    assert never >= 100, (
        f"at least 100 pixels should never be changed; with your boards there are {never}"
    )
    if bad_flow is None or good_flow is None or bits is None:
        return print("Exercise 2: the boards pass; now train both flows")
    turns = [masks.checkerboard(28, 28, flip=i % 2 == 1) for i in range(6)]
    for name, flow, expected in [("bad", bad_flow, boards), ("good", good_flow, turns)]:
        used = [layer.mask for layer in flow.modules() if isinstance(layer, AffineCoupling)]
        assert len(used) == 6, f"the {name} flow should have six couplings, it has {len(used)}"
        differ = [i for i, (a, b) in enumerate(zip(used, expected)) if not torch.equal(a, b)]
        what = "your boards, in their order" if name == "bad" else "checkerboards that take turns"
        assert not differ, (
            f"the {name} flow should use {what}; coupling {differ[0]} does not" if differ else ""
        )
        _check_bits(name, flow, bits[name], judged)
    if budget(True, False):
        assert bits["bad"] > bits["good"] + 0.1, (
            f"a scheme this bad should cost more than 0.1 bits/dim: yours has {bits['bad']:.3f} "
            f"against {bits['good']:.3f}; were both trained, and equally long?"
        )
    print("Exercise 2: passed")


def check_exercise_3(forward, inverse):
    """The multi-scale architecture in both directions."""
    if forward is None or inverse is None:
        return print("Exercise 3: not answered yet")
    for C, side, n in [(1, 4, 1), (1, 8, 2), (2, 8, 3)]:
        shape = (C, side, side)
        scales = _random_scales(C, side, n)
        reference = MultiScale(shape, *scales)
        x = torch.randn(3, *shape, dtype=torch.float64)
        with torch.no_grad():
            (z, log_det), (expected, expected_log_det) = forward(x, scales), reference(x)
            assert z.shape == expected.shape, (
                f"with {n} scales of {shape} z should have shape {tuple(expected.shape)}, got "
                f"{tuple(z.shape)}"
            )
            hint = (
                "z should hold all values that MultiScale's does, but in another order: "
                "first factored out first, flattened"
            )
            same_values = torch.allclose(z.sort(1).values, expected.sort(1).values)
            assert torch.allclose(z, expected), (
                hint if same_values else f"z differs from MultiScale's with {n} scales"
            )
            assert torch.is_tensor(log_det) and log_det.shape == (3,), (
                f"one log_det for each image: expected a tensor of shape (3,), got {log_det}"
            )
            assert torch.allclose(log_det, expected_log_det), (
                "log_det should be the sum over all scales, the last one as well"
            )
            back, back_log_det = inverse(z, scales, shape)
            assert back.shape == x.shape and torch.allclose(back, x), (
                f"inverse(forward(x)) should be x, with {n} scales it is not"
            )
            assert torch.allclose(back_log_det, -log_det), (
                "the inverse's log_det should be minus the forward's"
            )
    scales, x = _random_scales(1, 4, 2), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: forward(flat.view(1, 1, 4, 4), scales)[0][0], x.flatten()
    )
    slow, fast = torch.linalg.slogdet(jacobian).logabsdet.item(), forward(x, scales)[1].item()
    assert abs(slow - fast) < 1e-8, (
        f"autograd's slogdet of your forward is {slow:.6f}, your log_det {fast:.6f}"
    )
    print("Exercise 3: passed")


def _check_bits(name, flow, given, judged):
    """That a flow needs, on the held-out images, the bits/dim that were given."""
    with torch.no_grad():
        measured = losses.bits_per_dim(flow.log_prob(judged, seed=1), judged.shape[1:])
    error = (measured.std() / len(measured) ** 0.5).item()
    assert abs(given - measured.mean()) < 0.02 + error, (
        f"the {name} flow has {measured.mean():.3f} bits/dim on `judged`, you gave {given:.3f}"
    )


def _random_scales(C, side, n):
    """Small scales with weights that are no longer those of the identity, in float64."""
    scales = []
    for k in range(n):
        layers = [
            AffineCoupling(
                masks.checkerboard(side, side), ConvResNet(C + 1, 2 * C, 4, 1, checkerboard=True)
            )
        ]
        if k < n - 1:
            deep = AffineCoupling(masks.channels(4 * C), ConvResNet(2 * C, 4 * C, 4, 1))
            layers += [Squeeze(), deep, Inverse(Squeeze()), Squeeze("checkerboard")]
            C, side = 2 * C, side // 2
        scales.append(Chain(*layers).double().eval())
        for parameter in scales[-1].parameters():
            nn.init.normal_(parameter, std=0.3)
    return scales
