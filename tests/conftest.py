import os

import kernels
import matplotlib
import pytest
import torch
from torch.torch_version import TorchVersion

# Without a driver, fake CUDA tensors end the process in a torch older than 2.10.
collect_ignore = [] if TorchVersion(torch.__version__) >= "2.10" else ["test_cuda.py"]

LONG = {"test_install", "test_cli", "test_resume", "test_checks", "test_conditional_images"}

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # many tests compare bits with a loop on the CPU
kernels.fork_from_one_process()
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state and style, whatever ran before it."""
    torch.manual_seed(0)
    matplotlib.rcdefaults()


def pytest_collection_modifyitems(items):
    """Notebooks and the longest files first: so two workers end at about the same time."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.stem not in LONG)
