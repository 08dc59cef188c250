import pytest
import torch

from flowlib import masks

KINDS = {"alternating": masks.alternating, "halves": masks.halves}


@pytest.mark.parametrize("D", range(1, 10))
def test_alternating_starts_with_true_and_takes_turns(D):
    assert masks.alternating(D).tolist() == [i % 2 == 0 for i in range(D)]


@pytest.mark.parametrize("D", range(1, 10))
def test_halves_passes_the_first_half_rounded_down(D):
    assert masks.halves(D).tolist() == [i < D // 2 for i in range(D)]


@pytest.mark.parametrize("kind", KINDS)
def test_flip_is_the_complement(kind):
    assert torch.equal(KINDS[kind](5, flip=True), ~KINDS[kind](5))


@pytest.mark.parametrize("D", range(1, 10))
def test_random_passes_half_rounded_down_and_obeys_its_seed(D):
    mask = masks.random(D, seed=3)
    assert mask.dtype == torch.bool
    assert mask.shape == (D,)
    assert mask.sum() == D // 2
    assert torch.equal(mask, masks.random(D, seed=3))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 5), (4, 4), (3, 5), (28, 28)])
def test_checkerboard_passes_the_fields_whose_row_and_column_add_up_to_an_even_number(H, W, flip):
    mask = masks.checkerboard(H, W, flip)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [((row + column) % 2 == 0) != flip for column in range(W)] for row in range(H)
    ]


@pytest.mark.parametrize(
    ("H", "W", "name"), [(0, 4, "H"), (4, 0, "W"), (2.0, 4, "H"), (4, True, "W")]
)
def test_a_senseless_board_is_refused(H, W, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        masks.checkerboard(H, W)


def test_random_reaches_every_dimension_over_seeds():
    drawn = torch.stack([masks.random(6, seed=seed) for seed in range(40)])
    assert drawn.any(0).all()
    assert not drawn.all(0).any()


@pytest.mark.parametrize("D", [0, -2, 2.0, True, "4", None])
@pytest.mark.parametrize(
    "make", [masks.alternating, masks.halves, lambda D: masks.random(D, seed=0)]
)
def test_a_senseless_number_of_dimensions_is_refused(make, D):
    with pytest.raises(ValueError, match="D must be an integer of at least 1"):
        make(D)
