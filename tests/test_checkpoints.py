"""Checkpoints there and back, what is refused, and the folder of a run."""

import errno
import gc
import json
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from filelock import FileLock
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


def flip(path, index):
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[index] ^= 4
    path.write_bytes(content)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half", [False, True])
def test_a_flow_of_low_precision_keeps_its_dtype(tmp_path, dtype, half):
    flow = BUILDERS["realnvp_2d"]().to(dtype)
    checkpoints.save(flow, tmp_path / "x.safetensors", half=half and dtype == torch.float16)
    loaded = checkpoints.load(tmp_path / "x.safetensors").state_dict()
    for name, tensor in flow.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_half_stores_matrices_in_float16_but_never_turns_a_weight_into_infinity(tmp_path):
    flow = BUILDERS["realnvp_2d"]()
    first, second = (flow.bijection[i].network[0].weight for i in (1, 2))
    with torch.no_grad():
        first[0, 0], second[0, 0] = 1e6, 1 / 3
    checkpoints.save(flow, tmp_path / "x.safetensors", half=True)
    loaded = checkpoints.load(tmp_path / "x.safetensors").bijection
    assert torch.equal(loaded[1].network[0].weight, first)
    assert torch.equal(loaded[2].network[0].weight, second.half().float())
    assert torch.equal(loaded[2].network[0].bias, flow.bijection[2].network[0].bias)


def test_numpy_numbers_and_tensors_in_arguments_seed_and_results_are_plain_in_the_card(tmp_path):
    flow = models.realnvp_2d(depth=np.int64(2), hidden=(np.int32(4), 4))
    results = {"a": np.float32(0.5), "b": np.arange(2), "c": torch.tensor(1.5), "d": np.bool_(True)}
    checkpoints.save(flow, tmp_path / "x.safetensors", seed=np.int32(7), results=results)
    card = checkpoints.read_card(tmp_path / "x.safetensors")
    assert card["arguments"] == {"depth": 2, "hidden": [4, 4], "context_features": 0}
    assert (card["seed"], card["results"]) == (7, {"a": 0.5, "b": [0, 1], "c": 1.5, "d": True})
    checkpoints.load(tmp_path / "x.safetensors")


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    checkpoints.save(BUILDERS["nice_2d"](), "~/a/x.safetensors")
    checkpoints.load("~/a/x.safetensors")
    checkpoints.Run("~/run", {}, resume=False).begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "run"]


def test_a_flow_is_loaded_onto_the_device_that_is_asked_for(path):
    flow = checkpoints.load(path, device="meta")
    assert {tensor.device.type for tensor in flow.state_dict().values()} == {"meta"}


# Shipped flows


def test_a_shipped_checkpoint_is_found_by_its_name(path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PRETRAINED", path.parent)
    sample = checkpoints.load("flow").sample(3, seed=0)
    assert torch.equal(sample, checkpoints.load(path).sample(3, seed=0))
    assert checkpoints.read_card("flow")["builder"] == "realnvp_2d"
    assert set(checkpoints.shipped()) == {"flow", "moons", "sinusoid"}


def test_where_no_flow_of_images_is_those_of_points_are(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "PRETRAINED", tmp_path / "data" / "pretrained")
    assert checkpoints.load("moons").shape == (2,)
    expected = "no checkpoint at 'mnist_small'; shipped with flowlib: moons, sinusoid$"
    with pytest.raises(FileNotFoundError, match=expected):
        checkpoints.load("mnist_small")


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
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at 'moon'.*: flow, moons, sin"):
        read("moon")


@pytest.mark.parametrize("read", [checkpoints.load, checkpoints.read_card])
def test_a_missing_card_is_refused(path, read):
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"flow.safetensors has no flow.json beside it"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"[]", b'"text"', b"null", b"{}", b'{"builder": "nice_2d"}'),
        b"[" * 100_000,
        b'{"builder": "nice_2d", "arguments": [], "results": {}}',
        b'{"builder": ["nice_2d"], "arguments": {}, "results": {}}',
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)
@pytest.mark.parametrize("read", [checkpoints.load, checkpoints.read_card])
def test_a_damaged_card_is_refused(path, read, content):
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match=r"flow.json is damaged \("):
        read(path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -40])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=r"flow.safetensors is damaged \(.* restore it from a copy"
    ):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint at all", b"\x80\x02}q\x00.", bytes(200), b"\xff" * 200]
)
def test_garbage_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"flow.safetensors is damaged \(.* restore it from a copy"
    ):
        checkpoints.load(path)


def test_the_weights_of_another_model_are_refused(path):
    edit_card(path, builder="nice_2d")
    with pytest.raises(ValueError, match=r"not hold the nice_2d of its card: [\s\S]*Missing key"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 2, "hidden": [8, 4]}, "Unexpected key"),
        ({"depth": 3, "hidden": [8, 3]}, "size mismatch"),
        ({"depth": 3, "hidden": [8, 5]}, "asks for more weights than it holds"),
    ],
)
def test_weights_of_another_size_are_refused(path, arguments, message):
    edit_card(path, arguments=arguments)
    with pytest.raises(ValueError, match=rf"hold the realnvp_2d of its card: [\s\S]*{message}"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "card",
    [
        {"builder": "realnvp_2d", "arguments": {"hidden": [160_000, 160_000]}},
        {"builder": "realnvp_2d", "arguments": {"depth": 10**6, "hidden": []}},
        {"builder": "realnvp_image", "arguments": {"shape": [1, 2**20, 2**20]}},
        {"builder": "realnvp_image", "arguments": {"shape": [1, 4, 4], "width": 10**6}},
        {"builder": "realnvp_mlp", "arguments": {"shape": [2**15, 2**15, 2**15]}},
    ],
    ids=str,
)
def test_a_card_that_would_fill_the_memory_is_refused_before_it_does(path, card):
    edit_card(path, **card)
    with pytest.raises(ValueError, match=r"asks for more weights than it holds|do not go with"):
        checkpoints.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path, value):
    flow = checkpoints.load(path)
    with torch.no_grad():
        flow.bijection[1].network[0].bias[1] = value
    checkpoints.save(flow, path)
    with pytest.raises(ValueError, match=r"bijection.1.network.0.bias holds NaN or infinity"):
        checkpoints.load(path)


def test_integers_in_place_of_weights_are_refused(path):
    tensors = safetensors.torch.load_file(path)
    name = "bijection.1.network.0.bias"
    safetensors.torch.save_file(tensors | {name: tensors[name].long()}, path)
    with pytest.raises(ValueError, match=f"{name} is torch.int64, expected torch.float32"):
        checkpoints.load(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(path):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for index in range(header, len(whole), 61):
        flip(path, index)
        with pytest.raises(ValueError, match=r"flow.safetensors is damaged"):
            checkpoints.load(path)
        path.write_bytes(whole)


def test_a_file_without_a_checksum_is_taken_as_it_is(path):
    before = checkpoints.load(path).sample(3, seed=0)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    assert torch.equal(checkpoints.load(path).sample(3, seed=0), before)


@pytest.mark.parametrize("results", [{"a": {1, 2}}, {"a": object}, {(1, 2): 3}], ids=str)
def test_results_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path, results):
    with pytest.raises(ValueError, match="holds more than numbers, texts, lists, dicts"):
        checkpoints.save(BUILDERS["nice_2d"](), tmp_path / "x.safetensors", results=results)
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(
        ValueError, match=r"hold the realnvp_2d of its card|arguments must be a dict"
    ):
        checkpoints.load(path)


# Writing


def test_a_full_disk_is_named_with_the_path_and_leaves_the_old_file_and_no_other(path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    before, names = path.read_bytes(), sorted(path.parent.iterdir())
    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*flow.safetensors") as caught:
        checkpoints.write(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == (before, names)


def test_two_writers_of_one_file_never_tear_it(tmp_path):
    path, contents = tmp_path / "file", [bytes([i]) * 50_000 for i in (1, 2)]
    checkpoints.write(path, contents[0])
    failures = []

    def keep_writing(content):
        try:
            for _ in range(50):
                checkpoints.write(path, content)
                assert path.read_bytes() in contents
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_writing, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# The folder of a run

CONFIG = {"builder": "nice_2d", "seed": 0, "lr": np.float32(0.5)}


@pytest.fixture
def run(tmp_path):
    """A run's folder after one evaluation, and nobody at it."""
    run = checkpoints.Run(tmp_path / "run", CONFIG, resume=False)
    run.begin()
    run.record(randomise(BUILDERS["nice_2d"]()), {"step": 5, "loss": np.float32(1.5)}, best=True)
    run.write_state({"a": torch.arange(1_000.0), "b": torch.tensor(True)}, {"step": 5, "best": 2.0})
    return tmp_path / "run"


def resumed(folder):
    return checkpoints.Run(folder, CONFIG, resume=True)


def test_a_run_finds_again_what_it_wrote(run):
    tensors, numbers = resumed(run).read_state()
    assert torch.equal(tensors["a"], torch.arange(1_000.0))
    assert numbers == {"step": 5, "best": 2.0}
    assert resumed(run).read_metrics(up_to_step=5) == [{"step": 5, "loss": 1.5}]
    assert checkpoints.read_card(run)["results"] == {"step": 5, "loss": 1.5}
    assert json.loads((run / "config.json").read_text())["torch"] == torch.__version__
    assert resumed(run).read_metrics(up_to_step=4) == []


def test_another_version_of_torch_may_go_on_with_a_run(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"torch": "2.0.0"}))
    resumed(run)


def test_another_process_at_the_same_folder_is_refused_until_the_first_is_gone(run):
    ours = resumed(run)
    resumed(run)  # one process may come back to its own folder, after an error in a notebook say
    other = FileLock(run / ".lock", timeout=0)  # as another process would
    with pytest.raises(TimeoutError):
        other.acquire()
    del ours
    gc.collect()
    with other, pytest.raises(ValueError, match="run is being written by another process"):
        resumed(run)


def test_what_a_killed_process_left_half_written_is_cleared_and_nothing_else(run):
    (run / ".flowlib-0123.tmp").touch()
    (run / "mine.tmp").touch()
    resumed(run)
    assert [path.name for path in run.rglob("*.tmp")] == ["mine.tmp"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", b'{"loss": 1}\n'),
        ("metrics.jsonl", b'{"step": "5"}\n'),
        ("metrics.jsonl", b"5\n"),
        ("metrics.jsonl", b"[" * 100_000 + b"\n"),
        ("config.json", b"5"),
        ("config.json", b"[" * 100_000),
        ("state.safetensors", safetensors.torch.save({"a": torch.zeros(2)}, {"numbers": "[]"})),
        ("state.safetensors", safetensors.torch.save({"a": torch.tensor(float("nan"))})),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_malformed_file_of_a_run_is_refused_by_its_path(run, file, content):
    (run / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged \(.* delete the folder and train"):
        (resumed(run).read_state(), resumed(run).read_metrics(9))


def test_a_flipped_bit_in_the_state_is_noticed(run):
    for index in (-1, -2_000):
        flip(run / "state.safetensors", index)
        with pytest.raises(
            ValueError, match=r"state.safetensors is damaged \(its checksum differs"
        ):
            resumed(run).read_state()
        flip(run / "state.safetensors", index)
    resumed(run).read_state()
