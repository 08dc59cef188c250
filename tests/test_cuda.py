"""What would happen on a CUDA GPU, on any machine: torch's fake tensors have a shape, a dtype and a device, but no values.

They refuse to mix devices, and to read a value, for which a GPU would have to be waited for. Backward passes they cannot do.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flowlib import models
from flowlib.losses import nll
from flowlib.recipes import RECIPES


@pytest.fixture(
    params=[
        name for name, recipe in RECIPES.items() if recipe.model in ("realnvp_mlp", "realnvp_image")
    ]
)
def flow(request):
    """The flow of a recipe, with narrow convolutions, whose parameters and buffers claim to lie on a GPU."""
    recipe = RECIPES[request.param]
    narrow = {"width": 4, "blocks": 1} if recipe.model == "realnvp_image" else {}
    flow = models.build(recipe.model, **recipe.arguments | narrow)
    for module in flow.modules():
        if hasattr(module, "_ready"):
            module._ready = True  # as after an ActNorm's first call, which reads a value
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        flow._apply(lambda tensor: mode.from_tensor(tensor.data).to("cuda"))
        yield flow


def test_training_and_sampling_stay_on_the_device_and_never_wait_for_it(flow):
    images = torch.empty(4, *flow.shape, dtype=torch.uint8, device="cuda")
    loss = nll(*flow.train()(images, None, torch.rand(images.shape, device="cuda")))
    assert loss.device.type == "cuda"
    assert flow.eval().sample(4).device.type == "cuda"


def test_images_left_behind_on_the_cpu_are_found(flow):
    images = torch.empty(4, *flow.shape, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        flow(images, None, torch.rand(images.shape, device="cuda"))
