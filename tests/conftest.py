import os

import pytest
import torch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # many tests compare bits with a loop on the CPU
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
