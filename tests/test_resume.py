"""A run that is cut off, wherever and however, ends bit-exact as one that was not."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from flowlib import checkpoints, data, models, training
from flowlib.__main__ import main

IMAGES = torch.randint(
    0, 256, (70, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
STEPS_PER_EPOCH = 6  # 60 rows to train on, 10 in a batch


def train_images(run, resume=False, **changes):
    """Everything at once that a resumed run has to remember; returns the flow and the history."""
    torch.manual_seed(changes.get("seed", 0))
    depth = changes.pop("depth", 2)
    flow = models.realnvp_mlp((1, 4, 4), depth, (8,), separate=False, norm="batchnorm")
    settings = {
        "epochs": 3,
        "batch_size": 10,
        "lr": 1e-2,
        "clip": 50.0,
        "ema": 0.8,
        "validation": 10,
        "keep_best": True,
        "seed": 0,
        **changes,
    }
    images = settings.pop("images", IMAGES)
    return flow, training.fit(flow, images, run=run, resume=resume, progress=False, **settings)


def tensors(path):
    return safetensors.torch.load(Path(path).read_bytes())


def same_tensors(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def files(folder):
    """The names of the files of a run, but for those that a kill left half-written, aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return sorted(str(path.relative_to(folder)) for path in paths)


def without_seconds(evaluations):
    return [
        {name: value for name, value in line.items() if name != "seconds"} for line in evaluations
    ]


def assert_same_run(folder, expected):
    """Both folders hold the same files, bit-exact wherever no clock is involved."""
    assert files(folder) == files(expected)
    for name in files(expected):
        if name.endswith(".safetensors"):
            assert same_tensors(tensors(folder / name), tensors(expected / name)), name
        if name.endswith(".png"):
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert metrics(folder) == metrics(expected)


class Killed(BaseException):
    """What `kill -9` is to a process: nothing that handles errors sees it."""


def kill_at_call(monkeypatch, owner, name, number, after=False):
    """Let the `number`-th call of owner.name be the last thing that happens, or not happen."""
    calls, function = itertools.count(1), getattr(owner, name)

    def call(*args, **kwargs):
        last = next(calls) == number
        if last and not after:
            raise Killed
        result = function(*args, **kwargs)
        if last:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, call)


def cut_off(monkeypatch, run, *where, **changes):
    with monkeypatch.context() as patch:
        kill_at_call(patch, *where)
        with pytest.raises(Killed):
            train_images(run, resume=True, **changes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return folder, *train_images(folder)


# Cut off in the same process, in the worst places


def assert_goes_on_bit_exact(run, uninterrupted):
    expected_folder, expected_flow, expected_history = uninterrupted
    flow, history = train_images(run, resume=True)
    assert_same_run(run, expected_folder)
    assert same_tensors(flow.state_dict(), expected_flow.state_dict())
    assert history.loss == expected_history.loss
    assert without_seconds(history.evaluations) == without_seconds(expected_history.evaluations)


@pytest.mark.parametrize("number", range(1, 13))
def test_killed_while_a_file_is_written(number, tmp_path, monkeypatch, uninterrupted):
    """The half-written file lies aside; everything before it counts."""
    cut_off(monkeypatch, tmp_path / "run", checkpoints.os, "replace", number)
    assert list(tmp_path.rglob("*.tmp"))
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (checkpoints, "write_grid", False),
        (checkpoints, "write_grid", True),
        (checkpoints, "save", True),
        (training, "_mean_nll", False),
        (training, "_mean_nll", True),
        (checkpoints.Run, "write_state", True),
    ],
    ids=[
        "before the samples",
        "after the samples",
        "after a checkpoint",
        "before an evaluation",
        "after an evaluation",
        "after the state",
    ],
)
def test_killed_between_two_files(owner, name, after, number, tmp_path, monkeypatch, uninterrupted):
    cut_off(monkeypatch, tmp_path / "run", owner, name, number, after)
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("step", [1, 8, 18])
def test_killed_in_an_update(step, tmp_path, monkeypatch, uninterrupted):
    cut_off(monkeypatch, tmp_path / "run", torch.optim.Adam, "step", step)
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


def test_killed_in_the_middle_of_an_epoch_that_was_saved_by_the_clock(
    tmp_path, monkeypatch, uninterrupted
):
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    monkeypatch.setattr(training, "CHECK_EVERY", 4)
    cut_off(monkeypatch, tmp_path / "run", torch.optim.Adam, "step", 12)
    saved = checkpoints.Run(
        tmp_path / "run", json.loads((tmp_path / "run" / "config.json").read_text()), resume=True
    ).read_state()[1]["step"]
    assert saved == 8
    assert saved % STEPS_PER_EPOCH
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


def test_killed_again_and_again(tmp_path, monkeypatch, uninterrupted):
    for number in (7, 5, 1, 3, 2):
        cut_off(monkeypatch, tmp_path / "run", torch.optim.Adam, "step", number)
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


def test_a_torn_last_line_of_the_metrics_is_forgotten(tmp_path, monkeypatch, uninterrupted):
    cut_off(monkeypatch, tmp_path / "run", torch.optim.Adam, "step", 8)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "los')
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


# Cut off from outside, at a moment that nobody chose


def start(function, *arguments):
    """A process of its own, for which Ctrl-C is what it is at a terminal."""

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(function(*arguments))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def stop_after_first_evaluation(process, run, with_signal):
    """Send a signal at a random moment soon after the first evaluation; return the status."""
    give_up = time.monotonic() + 60
    while not (run / "last.safetensors").exists() and time.monotonic() < give_up:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    os.kill(process.pid, with_signal)
    process.join()
    return process.exitcode


def train_convolutions(run, resume=False):
    """In bfloat16 where it counts: on weights whose layout a convolution would like otherwise."""
    torch.manual_seed(0)
    flow = models.realnvp_image((1, 4, 4), scales=1, width=4, blocks=1)
    settings = {"precision": "bfloat16", "ema": 0.9, "lr": 1e-2, "validation": 10, "seed": 0}
    settings |= {"epochs": 3, "batch_size": 10, "run": run, "resume": resume, "progress": False}
    return flow, training.fit(flow, IMAGES, **settings)


def test_kill_9_of_a_convolutional_run_in_bfloat16(tmp_path, monkeypatch):
    """Bit-exact weights, averages, statistics and moments. States saved by the clock, every 4
    steps, lie within an epoch of 6."""
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    monkeypatch.setattr(training, "CHECK_EVERY", 4)
    whole, history = train_convolutions(tmp_path / "whole")
    process = start(train_convolutions, tmp_path / "run")
    status = stop_after_first_evaluation(process, tmp_path / "run", signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not (tmp_path / "run" / "samples" / "0000018.png").exists()
    flow, resumed = train_convolutions(tmp_path / "run", resume=True)
    assert resumed.loss == history.loss
    assert same_tensors(flow.state_dict(), whole.state_dict())
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    state = tensors(tmp_path / "run" / "state.safetensors")
    assert {name.split(".")[0] for name in state} == {"flow", "ema", "optimizer", "loss"}


MOONS = ["train", "moons", "--steps", "100", "--batch-size", "16"]


def test_ctrl_c_of_the_command_line_keeps_a_flow_and_says_how_to_go_on(tmp_path, capfd):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main([*MOONS, "--run", str(whole)]) == 0
    capfd.readouterr()
    process = start(main, [*MOONS, "--run", str(run)])
    assert stop_after_first_evaluation(process, run, signal.SIGINT) == 130
    printed, errors = capfd.readouterr()
    said = "of 100 steps; the flow keeps what it has learned so far. With resume=True it goes on"
    assert said in printed
    assert "give the same command with --resume" in printed
    assert "Traceback" not in errors
    checkpoints.load(run)
    assert main([*MOONS, "--run", str(run), "--resume"]) == 0
    assert_same_run(run, whole)
    assert (run / "results.json").read_text() == (whole / "results.json").read_text()


# When there is nothing to go on with, or nothing left to do


def test_resuming_an_empty_folder_starts(tmp_path, uninterrupted):
    (tmp_path / "run").mkdir()
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


def test_a_finished_run_is_handed_back_at_once(tmp_path, monkeypatch, uninterrupted):
    train_images(tmp_path / "run")
    monkeypatch.delattr(torch.optim.Adam, "step")
    assert_goes_on_bit_exact(tmp_path / "run", uninterrupted)


# What is refused


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_to_be_resumed(tmp_path, uninterrupted):
    before = tensors(uninterrupted[0] / "state.safetensors")
    with pytest.raises(
        ValueError, match=r"run already holds a run: resume it, or choose another folder"
    ):
        train_images(uninterrupted[0])
    assert same_tensors(before, tensors(uninterrupted[0] / "state.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 2e-2}, "started with lr=0.01, and is to go on with 0.02"),
        ({"seed": 1}, "started with seed=0, and is to go on with 1"),
        (
            {"epochs": 4},
            "started with steps=18, and is to go on with 24.*start=.*run",
        ),
        ({"ema": None}, "started with ema=0.8, and is to go on with None"),
        ({"clip": 1.0}, "started with clip=50.0, and is to go on with 1.0"),
        (
            {"betas": (0.9, 0.9)},
            r"started with betas=\[0.9, 0.99\], and is to go on with \[0.9, 0.9\]",
        ),
        ({"schedule": "constant"}, "started with schedule=cosine, and is to go on with constant"),
        ({"depth": 3}, "started with arguments=.*'depth': 2.*, and is to go on with .*'depth': 3"),
        ({"images": IMAGES.flip(0)}, "started with data_fingerprint=.*, and is to go on with"),
        ({"images": IMAGES[:-1]}, "started with rows=70, and is to go on with 69"),
        (
            {"images": data.ImageSet("other", IMAGES, None, None, None)},
            "started with data=.*, and is to go on with other",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_going_on_with_something_else_is_refused(changes, message, uninterrupted):
    with pytest.raises(ValueError, match=message):
        train_images(uninterrupted[0], resume=True, **changes)


def test_another_density_is_refused(tmp_path):
    flow = models.realnvp_2d(depth=1, hidden=(4,))
    training.fit(
        flow,
        data.TwoMoons(noise=0.1),
        steps=2,
        batch_size=8,
        seed=0,
        run=tmp_path / "run",
        progress=False,
    )
    with pytest.raises(
        ValueError,
        match=r"data=TwoMoons\(noise=0.1\), and is to go on with TwoMoons\(noise=0.2\)",
    ):
        training.fit(
            flow,
            data.TwoMoons(noise=0.2),
            steps=2,
            batch_size=8,
            seed=0,
            run=tmp_path / "run",
            resume=True,
            progress=False,
        )


def test_a_resume_leaves_the_global_generator_alone(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path / "run", torch.optim.Adam, "step", 8)
    flow = models.realnvp_mlp((1, 4, 4), 2, (8,), separate=False, norm="batchnorm")
    torch.manual_seed(5)
    caller = torch.get_rng_state()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings = {name: settings[name] for name in training.SETTINGS}
    run = {"run": tmp_path / "run", "resume": True, "progress": False}
    training.fit(flow, IMAGES, **run, **settings)
    assert torch.equal(torch.get_rng_state(), caller)


def test_scalars_of_numpy_are_the_settings_that_they_are(tmp_path):
    run, expected = tmp_path / "run", tmp_path / "expected"
    numbers = {"epochs": np.int64(3), "batch_size": np.int32(10), "lr": np.float64(1e-2)}
    numbers |= {"clip": np.float32(50), "validation": np.int16(10), "keep_best": np.bool_(True)}
    train_images(run, seed=np.int64(0), betas=(np.float64(0.9), 0.99), **numbers)
    train_images(expected)
    assert (run / "config.json").read_text() == (expected / "config.json").read_text()
    assert_same_run(run, expected)


def dropped(whole, part):
    whole = safetensors.torch.load(whole)
    numbers = json.dumps({"step": 18, "best": 1.0, "seconds": 1.0, "tensors": len(whole)})
    kept = {name: tensor for name, tensor in whole.items() if part not in name}
    return safetensors.torch.save(kept, {"numbers": numbers})


DAMAGES = {
    "state.safetensors": {
        "no moments": lambda whole: dropped(whole, "exp_avg_sq"),
        "no losses": lambda whole: dropped(whole, "loss"),
        "empty": lambda whole: b"",
        "torn header": lambda whole: whole[:7],
        "torn": lambda whole: whole[:1_000],
        "foreign": lambda whole: safetensors.torch.save({"weight": torch.zeros(3)}),
    },
    "config.json": {"empty": lambda whole: b"", "torn": lambda whole: whole[:20]},
    "metrics.jsonl": {
        "torn line in the middle": lambda whole: b'{"step": 6, "lo\n' + whole,
        "no text": lambda whole: b"\xff\xfe\n" + whole,
    },
}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name, damages in DAMAGES.items() for damage in damages]
)
def test_a_damaged_file_is_refused_by_its_path(name, damage, tmp_path, uninterrupted):
    run = shutil.copytree(uninterrupted[0], tmp_path / "run")
    (run / name).write_bytes(DAMAGES[name][damage]((run / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} is damaged .* delete the folder and train anew"):
        train_images(run, resume=True)


def test_a_start_that_fails_does_not_take_the_folder(tmp_path):
    with pytest.raises(ValueError, match="Invalid beta"):
        train_images(tmp_path / "run", betas=(0.9, 1.0))
    train_images(tmp_path / "run", epochs=1)
