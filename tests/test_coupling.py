"""Couplings: what passes through, what changes, and what is refused. Their inverses and
determinants: test_bijections.py."""

import math

import pytest
import torch
from helpers import randomise

from flowlib import masks
from flowlib.coupling import AdditiveCoupling, AffineCoupling
from flowlib.networks import MLP

KINDS = {"additive": AdditiveCoupling, "affine": AffineCoupling}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
MASKS = [
    masks.alternating(5),
    masks.alternating(5, flip=True),
    masks.halves(5),
    masks.halves(5, flip=True),
    masks.random(5, seed=1),
]


def coupling(kind, mask, hidden=(8,)):
    return kind(mask, MLP(int(mask.sum()), kind.parameters_per_dim * int((~mask).sum()), hidden))


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join("01"[m] for m in mask.int()))
@every_kind
def test_what_the_mask_keeps_passes_through_bit_for_bit_and_the_rest_changes(kind, mask):
    layer, x = randomise(coupling(kind, mask)), torch.randn(20, 5)
    for map_ in (layer, layer.inverse):
        out = map_(x)[0]
        assert torch.equal(out[:, mask], x[:, mask])
        assert (out[:, ~mask] != x[:, ~mask]).all()


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join("01"[m] for m in mask.int()))
def test_split_and_join_keep_the_order_of_the_dimensions(mask):
    layer, x = coupling(AffineCoupling, mask), torch.randn(4, 5)
    kept, changed = layer.split(x)
    assert torch.equal(kept, x[:, mask])
    assert torch.equal(changed, x[:, ~mask])
    assert torch.equal(layer.join(kept, changed), x)


def constant(*values):
    """A network that returns the same parameters for every row."""
    return lambda kept, context: torch.tensor(values).expand(len(kept), -1)


def test_affine_coupling_scales_then_shifts():
    """z_b = x_b exp(s) + t with s = rescale tanh(raw); here exp(s) = 2 and t = 10."""
    layer = AffineCoupling(torch.tensor([True, False]), constant(10.0, math.inf))
    with torch.no_grad():
        layer.rescale.fill_(math.log(2))
    z, log_det = layer(torch.tensor([[3.0, 5.0]]))
    assert z.tolist()[0] == pytest.approx([3, 20])
    assert log_det.item() == pytest.approx(math.log(2))


def test_additive_coupling_shifts_and_preserves_volume():
    layer = AdditiveCoupling(torch.tensor([False, True]), constant(10.0))
    z, log_det = layer(torch.tensor([[3.0, 5.0]]))
    assert z.tolist() == [[13.0, 5.0]]
    assert log_det.tolist() == [0.0]


def test_every_transformed_dimension_has_a_rescale_of_its_own():
    layer = AffineCoupling(masks.halves(5), constant(0.0, 0.0, 0.0, math.inf, math.inf, -math.inf))
    with torch.no_grad():
        layer.rescale.copy_(torch.tensor([0.1, 0.2, 0.4]))
    for x in (torch.randn(3, 5), torch.randn(2, 5)):
        z, log_det = layer(x)
        assert (z / x).tolist()[0] == pytest.approx([1, 1, *map(math.exp, (0.1, 0.2, -0.4))])
        assert log_det.tolist() == pytest.approx([-0.1] * len(x), abs=1e-6)


def test_every_transformed_channel_has_a_rescale_of_its_own_and_a_checkerboard_one_in_all():
    raw = lambda x_a, context: torch.full((len(x_a), 4, 2, 2), math.inf)  # noqa: E731
    by_channel = AffineCoupling(masks.channels(4), raw)
    on_board = AffineCoupling(masks.checkerboard(2, 2), raw)
    assert by_channel.rescale.shape == (2,) and on_board.rescale.shape == (1,)
    with torch.no_grad():
        by_channel.rescale.copy_(torch.tensor([0.1, 0.2]))
        on_board.rescale.fill_(0.3)
    scales = by_channel.shift_and_log_scale(torch.randn(1, 2, 2, 2))[1][0]
    assert scales[0].unique().item() == pytest.approx(0.1)
    assert scales[1].unique().item() == pytest.approx(0.2)
    on_positions = on_board.shift_and_log_scale(torch.randn(1, 3, 2, 2))[1][0]
    assert on_positions[:, ~masks.checkerboard(2, 2)].unique().item() == pytest.approx(0.3)


def test_a_network_in_bfloat16_leaves_the_step_in_the_dtype_of_the_data():
    network = MLP(2, 6).bfloat16()
    layer = AffineCoupling(masks.halves(5), lambda x_a, context: network(x_a.bfloat16()))
    x = torch.randn(4, 5)
    assert {out.dtype for out in (*layer(x), *layer.inverse(x))} == {torch.float32}


def test_log_scale_is_bounded_by_the_rescale():
    layer = randomise(coupling(AffineCoupling, masks.halves(4)), size=10.0)
    _, log_scale = layer.shift_and_log_scale(1e6 * torch.randn(50, 2))
    assert (log_scale.abs() <= layer.rescale.abs()).all()


@every_kind
def test_a_mask_that_keeps_nothing_needs_a_network_of_the_context_alone(kind):
    mask = torch.zeros(2, dtype=torch.bool)
    layer = randomise(kind(mask, MLP(0, 2 * kind.parameters_per_dim, (8,), context_features=1)))
    x, context = torch.randn(5, 2), torch.randn(5, 1)
    z, log_det = layer(x, context)
    assert torch.allclose(layer.inverse(z, context)[0], x, atol=1e-6)
    assert log_det.shape == (5,)


@every_kind
def test_the_mask_is_a_buffer_and_is_shown(kind):
    layer = coupling(kind, masks.alternating(4))
    assert dict(layer.named_buffers())["mask"].tolist() == [True, False, True, False]
    assert "mask=1010" in repr(layer)


@every_kind
@pytest.mark.parametrize("shape", [(4, 3), (4, 5), (4,), (4, 4, 1), (4, 2, 2), (0, 3)], ids=str)
def test_input_of_another_shape_is_refused(kind, shape):
    layer = coupling(kind, masks.alternating(4))
    for map_ in (layer, layer.inverse):
        with pytest.raises(
            ValueError, match=r"this coupling takes \(B, 4\), got \(" + str(shape[0])
        ):
            map_(torch.zeros(shape))


@every_kind
@pytest.mark.parametrize("D", [0, 1, 5])
def test_a_mask_with_nothing_to_transform_is_refused(kind, D):
    with pytest.raises(ValueError, match=f"leaves nothing to transform: all {D} dimensions"):
        kind(torch.ones(D, dtype=torch.bool), None)


@every_kind
@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([1, 0]),
        torch.tensor([1.0, 0.0]),
        torch.ones(1, 2, 2).bool(),
        torch.tensor(True),
        [True, False],
    ],
    ids=repr,
)
def test_a_mask_that_is_no_boolean_vector_or_board_is_refused(kind, mask):
    with pytest.raises(ValueError, match="must be a boolean vector or board"):
        kind(mask, MLP(1, 2))


@every_kind
@pytest.mark.parametrize("excess", [-1, 1, 3])
def test_a_network_of_another_output_width_is_refused(kind, excess):
    width = 3 * kind.parameters_per_dim
    layer = kind(masks.halves(5), MLP(2, width + excess))
    for map_ in (layer, layer.inverse):
        with pytest.raises(
            ValueError, match=rf"network must return \(B, {width}\), got \(6, {width + excess}\)"
        ):
            map_(torch.zeros(6, 5))


def test_weights_trained_under_another_mask_are_refused_every_time():
    mine, theirs = (coupling(AffineCoupling, masks.alternating(4, flip)) for flip in (False, True))
    for _ in range(2):  # a refused mask must not be taken over, or the second attempt would pass
        with pytest.raises(RuntimeError, match="mask differs from this coupling's"):
            mine.load_state_dict(theirs.state_dict())
    assert mine.mask.tolist() == [True, False, True, False]
