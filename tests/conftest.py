import os

import pytest
import torch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # many tests compare bits with a loop on the CPU
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """What processes must not share out: a notebook's cells, tests with a fixture of their file.

    `--dist loadgroup` begins with the largest groups and ends with single tests, so that every
    process is busy to the end.
    """
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        scopes = (
            [d.scope for ds in fixtures.name2fixturedefs.values() for d in ds] if fixtures else []
        )
        if item.path.suffix == ".ipynb" or "module" in scopes:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
