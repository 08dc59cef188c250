"""The whole of Real NVP on one page: short, on its own, and right."""

import ast
import re
import runpy
from pathlib import Path

import matplotlib
import pytest
import torch

from flowlib import data

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "realnvp_in_100_lines.py"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the file defines, after its short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setenv("FLOWLIB_FAST", "1")
        patch.setattr(matplotlib, "rcParams", matplotlib.rcParams.copy())
        matplotlib.use("Agg")
        run = runpy.run_path(str(PAGE))
        assert Path("realnvp_in_100_lines.png").stat().st_size > 10_000
    return run


def test_is_one_page_and_needs_no_flowlib():
    lines = PAGE.read_text().splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    imports = [n for n in ast.walk(ast.parse(PAGE.read_text())) if isinstance(n, ast.Import)]
    modules = {alias.name.split(".")[0] for node in imports for alias in node.names}
    assert modules == {"math", "os", "matplotlib", "torch"}
    assert not re.search(r"^from (?!torch)", PAGE.read_text(), re.MULTILINE)


def test_its_data_and_truth_are_those_of_flowlib(page):
    moons = data.TwoMoons(noise=page["NOISE"])
    x = page["sample_data"](2_000)
    error = page["log_p_true"](x) - moons.log_prob(x)
    assert error.abs().max() < 1e-2 and error.mean().abs() < 1e-4
    assert abs(moons.log_prob(page["sample_data"](20_000)).mean() + moons.entropy) < 0.03


def test_its_log_det_is_that_of_autograd_and_its_round_trip_exact(page):
    flow = page["flow"].double()
    x = page["sample_data"](50).double()
    z, log_det = flow(x)
    assert (z - x).abs().max() > 1e-2, "it has learned something"
    jacobians = torch.func.vmap(torch.func.jacrev(lambda point: flow(point[None])[0][0]))(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians).logabsdet)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-12, rtol=0)


def test_its_loss_falls(page):
    untrained = page["Flow"](page["Coupling"](torch.tensor([1.0, 0.0]).roll(k)) for k in range(8))
    x = page["sample_data"](2_000)
    assert page["flow"].float().log_prob(x).mean() > untrained.log_prob(x).mean() + 0.1
