"""Two processes on the CPU train to the curve of one. Run as a script, this file is what each of them does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import assert_close

from flowlib import checkpoints, data, models, training

IMAGES = torch.randint(
    0, 256, (131, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
CONTEXT = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
POINTS = CONTEXT + 0.3 * torch.randn(300, 2, generator=torch.Generator().manual_seed(2))
IMAGE_SETTINGS = {
    "epochs": 10,
    "batch_size": 20,
    "lr": 1e-3,
    "clip": 20.0,
    "ema": 0.9,
    "validation": 11,
}  # 11 rows do not halve


def started(**arguments):
    """A flow whose ActNorm is off the mark: exactly on it the first gradient is rounding error, which Adam makes a step of."""
    flow = models.realnvp_2d(depth=2, hidden=(16,), **arguments)
    flow.bijection[0].initialise(1 + 2 * POINTS)
    return flow


CASES = {
    "a density": (started, data.TwoMoons(), {"steps": 120, "batch_size": 64}),
    "a tensor with context": (
        lambda: started(context_features=2),
        POINTS,
        {"epochs": 10, "batch_size": 60, "context": CONTEXT},
    ),
    "images": (
        lambda: models.realnvp_mlp((1, 4, 4), depth=2, hidden=(16,)),
        IMAGES,
        IMAGE_SETTINGS,
    ),
}


def train(case, **more):
    build, examples, settings = CASES[case]
    torch.manual_seed(0)
    flow = build()
    history = training.fit(flow, examples, seed=0, progress=False, **settings, **more)
    return {"loss": history.loss, "evaluations": history.evaluations, "weights": flow.state_dict()}


def first_loss():
    """Of a flow whose ActNorm is started by `fit`, from the first batch."""
    torch.manual_seed(0)
    return training.fit(
        models.nice_2d(), POINTS, steps=1, batch_size=60, seed=0, progress=False
    ).loss[0]


def losses_without_a_seed(global_seed):
    """`fit` draws a seed of its own from the global generator, which is another in every process."""
    torch.manual_seed(0)
    flow = models.nice_2d()
    torch.manual_seed(global_seed)
    return training.fit(flow, data.TwoMoons(), steps=3, batch_size=64, progress=False).loss


def interrupt_at(step):
    """Ctrl-C in every process at once."""
    update = training._Training._update

    def interrupted(self, now):
        if now == step:
            raise KeyboardInterrupt
        update(self, now)

    training._Training._update = interrupted
    return update


def refusal(**settings):
    try:
        training.fit(
            models.realnvp_2d(), data.TwoMoons(), steps=2, seed=0, progress=False, **settings
        )
    except ValueError as error:
        return str(error)


def counted(function, calls):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


def do_everything(folder):
    """What one process does, and what it tells of it."""
    from accelerate import PartialState

    written = []
    checkpoints.write = counted(checkpoints.write, written)
    told = {"refusal": refusal(batch_size=33)}
    for case in CASES:
        told[case] = train(case, **({"run": folder / "run"} if case == "images" else {}))
    told["first loss"] = first_loss()
    told["without a seed"] = losses_without_a_seed(100 + PartialState().process_index)
    update, training.SAVE_EVERY = interrupt_at(55), 0
    told["cut off"] = train("images", run=folder / "cut off")
    training._Training._update = update
    told["resumed"] = train("images", run=folder / "cut off", resume=True)
    told |= {"writes": len(written), "world": PartialState().num_processes}
    torch.save(told, folder / f"{PartialState().process_index}.pt")


def launch(*command):
    """Run this file in processes of its own, on the CPU even where there is a GPU."""
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes share, and what each of them told."""
    folder = tmp_path_factory.mktemp("two")
    launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, folder)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture
def on_the_cpu(monkeypatch):
    """This process trains on the CPU too, even where there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_there_really_were_two_processes(two):
    assert [told["world"] for told in two[1]] == [2, 2]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_follow_the_curve_of_one_to_the_same_weights(case, two, on_the_cpu):
    alone = train(case)
    for told in two[1]:
        assert_close(torch.tensor(told[case]["loss"]), torch.tensor(alone["loss"]), 1e-4)
        for name, tensor in alone["weights"].items():
            assert_close(told[case]["weights"][name].double(), tensor.double(), 1e-4)


@pytest.mark.parametrize("case", [*CASES, "resumed"])
def test_both_processes_end_with_the_same_bits(case, two):
    first, second = (told[case] for told in two[1])
    assert first["loss"] == second["loss"]
    assert all(
        torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items()
    )


def test_actnorm_starts_from_the_rows_of_both_processes(two, on_the_cpu):
    assert [told["first loss"] for told in two[1]] == pytest.approx([first_loss()] * 2, abs=1e-5)


def test_rows_held_out_are_shared_without_losing_one(two, on_the_cpu):
    alone = [line["validation_loss"] for line in train("images")["evaluations"]]
    for told in two[1]:
        assert [line["validation_loss"] for line in told["images"]["evaluations"]] == pytest.approx(
            alone, rel=1e-5
        )


def test_only_the_first_process_writes(two):
    folder, (first, second) = two
    assert first["writes"] > 0
    assert second["writes"] == 0
    lines = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(6, 61, 6))


def test_a_run_of_two_processes_is_resumed_to_the_same_bits(two):
    for told in two[1]:
        assert len(told["cut off"]["loss"]) == 55
        assert told["resumed"]["loss"] == told["images"]["loss"]
        assert all(
            torch.equal(tensor, told["images"]["weights"][name])
            for name, tensor in told["resumed"]["weights"].items()
        )


def test_a_batch_that_does_not_divide_is_refused(two):
    assert [told["refusal"] for told in two[1]] == [
        "a batch of 33 rows does not divide by 2 processes"
    ] * 2


def test_without_a_seed_the_first_process_chooses_for_both(two, on_the_cpu):
    alone = losses_without_a_seed(100)
    assert [told["without a seed"] for told in two[1]] == [pytest.approx(alone, rel=1e-3)] * 2
    assert losses_without_a_seed(101) != pytest.approx(alone, rel=1e-3)


NOTEBOOK = """
import socket, sys
from accelerate import notebook_launcher
from flowlib import data, models, training

def train():
    history = training.fit(models.nice_2d(depth=1, hidden=(4,)), data.TwoMoons(), steps=3, batch_size=8, seed=0, progress=False)
    from accelerate import PartialState
    losses = [round(loss, 4) for loss in history.loss]
    sys.stdout.write(f"{PartialState().process_index} of {PartialState().num_processes}: {losses}\\n")

with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
notebook_launcher(train, num_processes=2, use_port=str(port))
"""


def test_a_notebook_launches_two_processes():
    lines = sorted(line for line in launch("-c", NOTEBOOK).splitlines() if " of 2: " in line)
    assert [line[0] for line in lines] == ["0", "1"]
    assert lines[0][1:] == lines[1][1:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    do_everything(Path(sys.argv[1]))
