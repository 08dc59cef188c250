import json

import pytest
import safetensors.torch
import torch
from helpers import randomise

from flowlib import Flow, checkpoints, models
from flowlib.bijections import Chain, Diagonal
from flowlib.training import fit

BUILDERS = {
    "nice_2d": lambda: models.nice_2d(depth=3, hidden=(8,)),
    "realnvp_2d": lambda: models.realnvp_2d(depth=3, hidden=(8, 4)),
    "conditional": lambda: models.realnvp_2d(depth=2, hidden=(8,), context_features=3),
}


@pytest.fixture
def path(tmp_path):
    """A saved realnvp_2d of three couplings."""
    checkpoints.save(
        randomise(BUILDERS["realnvp_2d"]()),
        tmp_path / "flow.safetensors",
        seed=3,
        results={"nats": 0.5},
    )
    return tmp_path / "flow.safetensors"


def edit_card(path, **changes):
    card = path.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


# There and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_reloaded_flow_is_the_same_flow_bit_for_bit(tmp_path, name, dtype):
    flow = randomise(BUILDERS[name]()).to(dtype)
    checkpoints.save(flow, tmp_path / "x.safetensors")
    reloaded = checkpoints.load(str(tmp_path / "x.safetensors"))
    x = torch.randn(20, 2, dtype=dtype)
    context = torch.randn(20, 3, dtype=dtype) if flow.context_features else None
    assert torch.equal(reloaded.log_prob(x, context), flow.log_prob(x, context))
    assert torch.equal(
        reloaded.sample(5, seed=0, context=None if context is None else context[:5]).isfinite(),
        torch.ones(5, 2).bool(),
    )
    assert not any(module.training for module in reloaded.modules())


def test_actnorm_stays_as_it_was_initialised_and_a_fit_does_not_start_it_again(path):
    flow = checkpoints.load(path)
    shift = flow.bijection[0].shift.clone()
    assert flow.bijection[0].initialised
    history = fit(
        flow, 1_000 + torch.randn(64, 2), steps=1, lr=1e-9, snapshots=1, seed=0, progress=False
    )
    assert torch.equal(history.snapshots[0].flow.bijection[0].shift, shift)


def test_a_flow_that_was_never_trained_is_reloaded_untrained(tmp_path):
    checkpoints.save(BUILDERS["nice_2d"](), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="ActNorm is not initialised"):
        checkpoints.load(tmp_path / "x.safetensors").log_prob(torch.zeros(1, 2))


def test_a_reloaded_flow_and_a_snapshot_can_be_saved_again(path, tmp_path):
    flow = checkpoints.load(path)
    history = fit(flow, torch.randn(64, 2), steps=2, snapshots=2, seed=0, progress=False)
    for number, again in enumerate([flow, history.snapshots[-1].flow]):
        checkpoints.save(again, tmp_path / f"{number}.safetensors")
        x = torch.randn(4, 2)
        assert torch.equal(
            checkpoints.load(tmp_path / f"{number}.safetensors").log_prob(x), flow.log_prob(x)
        )


def test_the_card_says_how_to_rebuild_the_flow_and_what_it_achieved(path):
    card = checkpoints.read_card(path)
    assert card["builder"] == "realnvp_2d"
    assert card["arguments"] == {"depth": 3, "hidden": [8, 4], "context_features": 0}
    assert card["seed"] == 3
    assert card["results"] == {"nats": 0.5}
    assert card["torch"] == torch.__version__
    assert card["hardware"] == checkpoints.hardware()


def test_saving_makes_missing_folders_and_leaves_only_the_two_files(tmp_path):
    checkpoints.save(BUILDERS["nice_2d"](), tmp_path / "a" / "b" / "x.safetensors")
    assert sorted(file.name for file in (tmp_path / "a" / "b").iterdir()) == [
        "x.json",
        "x.safetensors",
    ]


def test_a_shipped_checkpoint_is_found_by_its_name(path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PRETRAINED", path.parent)
    assert torch.equal(
        checkpoints.load("flow").sample(3, seed=0), checkpoints.load(path).sample(3, seed=0)
    )
    assert checkpoints.read_card("flow")["builder"] == "realnvp_2d"


# What is refused


@pytest.mark.parametrize("name", ["x.pt", "x", "x.json"])
def test_another_file_ending_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"a checkpoint's name ends in .safetensors, got '{name}'"):
        checkpoints.save(BUILDERS["nice_2d"](), tmp_path / name)


def test_a_flow_without_a_builder_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"only flows from a builder in flowlib\.models can be saved"
    ):
        checkpoints.save(Flow(Chain(Diagonal(2)), shape=(2,)), tmp_path / "x.safetensors")


@pytest.mark.parametrize("read", [checkpoints.load, checkpoints.read_card])
def test_an_unknown_name_is_refused_by_naming_those_there_are(path, monkeypatch, read):
    monkeypatch.setattr(checkpoints, "PRETRAINED", path.parent)
    with pytest.raises(
        FileNotFoundError,
        match=r"no checkpoint at 'moon', and none is shipped under that name \(shipped: flow\)",
    ):
        read("moon")


@pytest.mark.parametrize("read", [checkpoints.load, checkpoints.read_card])
def test_a_missing_card_is_refused(path, read):
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"flow.safetensors has no flow.json beside it"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'"text"', b"null", b"{}", b'{"builder": "nice_2d"}'],
)
@pytest.mark.parametrize("read", [checkpoints.load, checkpoints.read_card])
def test_a_damaged_card_is_refused(path, read, content):
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match=r"flow.json is damaged or not a flowlib card"):
        read(path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -40])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"flow.safetensors is damaged or is no safetensors file"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint at all", b"\x80\x02}q\x00.", bytes(200), b"\xff" * 200]
)
def test_garbage_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flow.safetensors is damaged or is no safetensors file"):
        checkpoints.load(path)


def test_the_weights_of_another_model_are_refused(path, tmp_path):
    checkpoints.save(BUILDERS["nice_2d"](), tmp_path / "nice.safetensors")
    path.write_bytes((tmp_path / "nice.safetensors").read_bytes())
    with pytest.raises(
        ValueError,
        match=r"flow.safetensors does not hold the weights of the realnvp_2d that its card describes",
    ):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "arguments", [{"depth": 2, "hidden": [8, 4]}, {"depth": 3, "hidden": [8, 5]}]
)
def test_weights_of_another_size_are_refused(path, arguments):
    edit_card(path, arguments=arguments)
    with pytest.raises(ValueError, match="does not hold the weights of the realnvp_2d"):
        checkpoints.load(path)


def test_a_checkpoint_with_another_mask_is_refused(path):
    tensors = safetensors.torch.load_file(path)
    tensors["bijection.1.mask"] = ~tensors["bijection.1.mask"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(
        ValueError,
        match=r"bijection.1.mask differs from this coupling's: \[0, 1\] against \[1, 0\]",
    ):
        checkpoints.load(path)


def test_a_card_that_names_an_unknown_model_is_refused(path):
    edit_card(path, builder="glow_2d")
    with pytest.raises(ValueError, match="unknown model 'glow_2d'"):
        checkpoints.load(path)


BAD_ARGUMENTS = [
    {"width": 8},
    {"depth": -1},
    {"depth": "3"},
    {"hidden": 8},
    {"hidden": ["a"]},
    {"hidden": [-1]},
    [3],
    None,
    "text",
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=str)
def test_a_card_with_arguments_that_its_builder_does_not_take_is_refused(path, arguments):
    edit_card(path, arguments=arguments)
    with pytest.raises(ValueError, match=r"depth|flow.json|hidden"):
        checkpoints.load(path)
