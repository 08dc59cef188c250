"""benchmarks/after.py trains the models that the cells of notebook 13 define."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import after  # noqa: E402

MODELS = list(after.LR)


def digits(n):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 8, (n, 1, 14, 14), dtype=torch.uint8, generator=rng)


def test_the_cells_define_every_model_of_about_one_size():
    sizes = {n: sum(p.numel() for p in after.parts()[n]().parameters()) for n in MODELS}
    assert max(sizes.values()) < 1.3 * min(sizes.values()), sizes


def test_two_steps_of_a_model_make_a_row_and_samples():
    settings = {**after.SETTINGS, "steps": 2, "batch_size": 4, "lr": 1e-3, "seed": 0}
    row, samples = after.run("glow", digits(16), digits(8), settings)
    assert samples.shape == (36, 1, 14, 14) and samples.min() >= 0 and samples.max() <= 1
    assert 0 < row["bits_per_dim"] < 10 and row["test_images"] == 8
    assert row["pixels_changed_by_round_trip"] == 0


def test_a_step_of_flow_matching_runs():
    torch.manual_seed(0)
    flow, settings = after.parts()["matching"](depth=1), {**after.SETTINGS, "batch_size": 4}
    loss = after.parts()["fit_matching"](
        flow, digits(16), **{**settings, "steps": 1}, lr=1e-3, seed=0
    )
    assert len(loss) == 1 and 0 < loss[0] < 100


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_stored_runs_of_the_same_settings(name):
    stored = json.loads(after.OUT.read_text())
    rows = [row for key, row in stored.items() if key.split()[0] == name]
    assert rows and after.OUT.with_name(f"after_{name}.png").is_file()
    for row in rows:
        assert {**after.SETTINGS, "lr": after.LR[name]}.items() <= row["settings"].items()


def test_attention_is_counted_wherever_it_runs():
    """By its size: 8 layers compare 49 positions in 32 features, twice, at 2 operations each."""
    flow = after.parts()["jet"](width=32)
    with torch.no_grad(), after.parts()["initialising"](flow):
        flow(digits(16))
    linear = (
        2 * 49 * sum(m.weight.numel() for m in flow.modules() if isinstance(m, torch.nn.Linear))
    )
    inward = 2 * 49 * 8 * 3 * 32 * 32  # queries, keys and values, which are no nn.Linear
    expected = linear + inward + 8 * 2 * 2 * 49 * 49 * 32
    assert after.mflop("jet", flow, digits(2)) == pytest.approx(expected / 1e6, rel=0.01)
