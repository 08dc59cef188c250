"""The shipped flows of images are as good as their cards say."""

import pytest

from flowlib import checkpoints, data, recipes

IMAGES = {
    path.stem: card["results"]
    for path in sorted(checkpoints.PRETRAINED.glob("*.json"))
    if "bits_per_dim" in (card := checkpoints.read_card(path))["results"]
}


def load_or_skip(name):
    try:
        return data.load(name)
    except FileNotFoundError:
        pytest.skip(f"{name} is not on this machine")


@pytest.mark.parametrize("name", IMAGES)
def test_a_shipped_flow_scores_what_its_card_says_on_the_first_1000_test_images(name):
    images = load_or_skip(IMAGES[name]["data"])
    figures = recipes.score(checkpoints.load(name), images, limit=1_000)
    assert figures["bits_per_dim"] == pytest.approx(IMAGES[name]["bits_per_dim_first_1000"], abs=0.01)


def test_the_better_mlp_beats_the_plain_one_by_a_tenth_of_a_bit_in_no_more_time():
    plain, better = IMAGES["mnist_plain"], IMAGES["mnist_mlp"]
    assert better["bits_per_dim"] < plain["bits_per_dim"] - 0.1
    assert better["seconds"] <= plain["seconds"]
