"""Procedural faces: the same for the same seed, varied, and with pixels that show what the attributes say."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from flowlib.common import generator
from flowlib.data.faces import ATTRIBUTES, BLOCK, draw_faces, invent_people, paint

TOP, EYES, MOUTH, CHIN = (
    slice(6, 16),
    slice(24, 36),
    slice(40, 50),
    slice(46, 54),
)  # rows of a 64 x 64 face


@pytest.fixture(scope="module")
def crowd():
    return draw_faces(2_000, size=32)


def people(**changes):
    """The same block of people each time, changed in the parameters given."""
    p = invent_people(BLOCK, generator(3))
    for name, value in changes.items():
        getattr(p, name)[:] = value
    return p


def contrast(name, low, high, **fixed):
    """Where the pictures change when one parameter goes from `low` to `high`: (BLOCK, 64, 64)."""
    one, other = (paint(people(**{name: value}, **fixed), 64) for value in (low, high))
    return (one - other).abs().mean(dim=1)


@pytest.mark.parametrize("size", [32, 40, 64, 128])
def test_shapes_and_types(size):
    images, attributes = draw_faces(3, size=size)
    assert images.shape == (3, 3, size, size) and images.dtype == torch.uint8
    assert attributes.shape == (3, len(ATTRIBUTES)) and attributes.dtype == torch.uint8
    assert attributes.max() <= 1


def test_no_faces():
    images, attributes = draw_faces(0)
    assert images.shape == (0, 3, 64, 64) and attributes.shape == (0, len(ATTRIBUTES))


def test_a_seed_fixes_every_bit():
    images, attributes = draw_faces(10, seed=5)
    again, known = draw_faces(10, seed=generator(5))
    assert torch.equal(images, again) and torch.equal(attributes, known)
    assert not torch.equal(images, draw_faces(10, seed=6)[0])


@pytest.mark.parametrize("k", [1, 7, BLOCK, BLOCK + 3])
def test_the_first_faces_do_not_depend_on_how_many_follow(k):
    images, attributes = draw_faces(2 * BLOCK + 5, seed=1)
    few, known = draw_faces(k, seed=1)
    assert torch.equal(few, images[:k]) and torch.equal(known, attributes[:k])


@pytest.mark.parametrize("size", [32, 64])
def test_every_size_draws_the_same_people(size):
    (small, known), (large, attributes) = draw_faces(BLOCK, size), draw_faces(BLOCK, 2 * size)
    assert torch.equal(known, attributes)
    difference = (small.float() - avg_pool2d(large.float(), 2)).abs()
    assert difference.mean() < 4
    assert difference.mean(dim=(1, 2, 3)).max() < 8


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_takes_both_values(crowd, name):
    assert 0.1 < crowd[1][:, ATTRIBUTES.index(name)].float().mean() < 0.9


def test_attributes_agree_with_what_is_drawn():
    attributes, p = draw_faces(BLOCK, seed=3)[1].bool(), people()
    column = dict(zip(ATTRIBUTES, attributes.unbind(1)))
    assert torch.equal(column["smiling"], p.smile.flatten() > 0)
    assert torch.equal(column["facing_left"], p.yaw.flatten() > 0)
    assert not (column["long_hair"] & (column["bald"] | column["beard"])).any()
    darkness = p.hair.mean(dim=(1, 2, 3))
    assert darkness[column["dark_hair"]].max() < darkness[~column["dark_hair"]].min()


def test_the_crowd_is_varied(crowd):
    images = crowd[0].float()
    assert 90 < images.mean() < 165
    assert images.std(dim=0).min() > 15  # every pixel of every channel varies
    assert (images.std(dim=(2, 3)).mean(dim=1) > 10).all()  # every face has contrast
    assert len(crowd[0].flatten(1).unique(dim=0)) == len(images)
    assert (crowd[0] == 0).float().mean() < 0.01 and (crowd[0] == 255).float().mean() < 0.01


def test_neighbouring_pixels_are_alike(crowd):
    """Anti-aliased, and free of stray dots: far from black and white noise even at the smallest size."""
    images = crowd[0].float()
    steps = images.diff(dim=3).abs()
    assert steps.mean() < 12
    assert (images - images.roll(1, 0)).abs().mean() > 3 * steps.mean()


@pytest.mark.parametrize(
    ("name", "low", "high", "shows", "spares"),
    [
        ("glasses", 0, 1, EYES, CHIN),
        ("beard", 0, 1, CHIN, EYES),
        ("bald", 0, 1, TOP, CHIN),
        ("smile", -1, 1, MOUTH, TOP),
    ],
)
def test_an_attribute_shows_where_it_should(name, low, high, shows, spares):
    rows = contrast(name, low, high).mean(dim=(0, 2))
    assert rows[shows].mean() > 0.01
    assert rows[shows].mean() > 2 * rows[spares].mean()


def test_a_mirrored_person_gives_the_mirrored_picture():
    mirrored = people()
    for name in ("yaw", "tilt", "centre_x", "gaze", "parting", "light"):
        getattr(mirrored, name).neg_()
    torch.testing.assert_close(paint(mirrored, 64), paint(people(), 64).flip(3), atol=1e-3, rtol=0)


def test_facing_left_carries_the_glasses_to_the_left():
    def column(yaw):
        frames = contrast("glasses", 0, 1, yaw=yaw, bald=1)
        return (frames.sum(dim=1) * torch.arange(64)).sum(dim=1) / frames.sum(dim=(1, 2))

    to_the_left = draw_faces(BLOCK, seed=3)[1][:, ATTRIBUTES.index("facing_left")].bool()
    turned = column(people().yaw) < column(-people().yaw)
    assert torch.equal(turned, to_the_left)


@pytest.mark.parametrize("n", [-1, 2.5, True, "many"])
def test_a_wrong_number_is_refused(n):
    with pytest.raises(ValueError, match=f"n must be an integer of at least 0, got {n!r}"):
        draw_faces(n)


@pytest.mark.parametrize("size", [36, 136, 100])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(
        ValueError, match=f"size must be a multiple of 8 from 32 to 128, got {size}"
    ):
        draw_faces(1, size=size)


@pytest.mark.parametrize("size", [24, 0, 64.0])
def test_a_size_too_small_or_not_whole_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be an integer of at least 32, got {size!r}"):
        draw_faces(1, size=size)


def test_a_wrong_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be an integer"):
        draw_faces(1, seed="lucky")
