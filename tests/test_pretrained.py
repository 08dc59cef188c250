"""The shipped flows of images are as good as their cards say."""

import pytest
import torch

from flowlib import checkpoints, recipes

IMAGES = {
    name: card["results"]
    for name in checkpoints.shipped()
    if "bits_per_dim" in (card := checkpoints.read_card(name))["results"]
}


def load_or_skip(name):
    try:
        return recipes.data_of(name, limit=100)
    except FileNotFoundError:
        pytest.skip(f"the data of {name} are not on this machine")


@pytest.mark.parametrize("name", IMAGES)
def test_a_shipped_flow_scores_what_its_card_says_on_the_first_100_test_images(name):
    images = load_or_skip(name)
    figures = recipes.score(checkpoints.load(name), images, limit=100)
    assert figures["bits_per_dim"] == pytest.approx(
        IMAGES[name]["bits_per_dim_first_100"], abs=0.002
    )


@pytest.mark.parametrize("name", IMAGES)
def test_test_images_come_back_exactly_through_trained_weights(name):
    flow, data = checkpoints.load(name), load_or_skip(name)
    images, context = data.test[:4], data.test_labels[:4] if flow.context_features else None
    assert torch.equal(flow.inverse(flow.encode(images, context), context)[0], images)


def test_shipped_files_stay_small_those_in_every_install_above_all():
    for folder, limit in ((checkpoints.PRETRAINED, 49e6), (checkpoints.PACKAGED, 0.5e6)):
        assert sum(path.stat().st_size for path in folder.iterdir()) < limit
