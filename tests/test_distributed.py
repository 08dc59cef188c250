"""Two processes on the CPU train to the curve of one."""

import functools
import itertools
import json
import multiprocessing
import os
import socket

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import assert_close

from flowlib import Flow, checkpoints, data, models, training
from flowlib.bijections import Chain
from flowlib.coupling import AffineCoupling
from flowlib.networks import MLP

IMAGES = torch.randint(
    0, 256, (131, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
CONTEXT = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
POINTS = CONTEXT + 0.3 * torch.randn(300, 2, generator=torch.Generator().manual_seed(2))
IMAGE_SETTINGS = {
    "epochs": 5,
    "batch_size": 20,
    "lr": 1e-3,
    "clip": 20.0,
    "ema": 0.9,
    "validation": 11,
}  # 11 rows do not halve


def started(**arguments):
    """A flow whose ActNorm is off the mark: exactly on it the first gradient is rounding error, of
    which Adam makes a step."""
    flow = models.realnvp_2d(depth=2, hidden=(16,), **arguments)
    flow.bijection[0].initialise(1 + 2 * POINTS)
    return flow


def mixture_of_two():
    passes = torch.tensor([True, False])
    coupling = AffineCoupling(passes, MLP(1, 2, (16,)))
    base = AffineCoupling(torch.zeros(2, dtype=torch.bool), MLP(0, 4, (), 2))
    return Flow(Chain(coupling, base), (2,), classes=2)


CASES = {
    "a density": (started, data.TwoMoons(), {"steps": 30, "batch_size": 64}),
    "a tensor with context": (
        lambda: started(context_features=2),
        POINTS,
        {"epochs": 5, "batch_size": 60, "context": CONTEXT},
    ),
    "images": (
        lambda: models.realnvp_mlp((1, 4, 4), depth=2, hidden=(16,)),
        IMAGES,
        IMAGE_SETTINGS,
    ),
    "labels asked for": (
        mixture_of_two,
        POINTS,
        {"steps": 30, "batch_size": 60, "context": (CONTEXT[:, 0] > 0).long(), "label_weight": 3.0},
    ),
}


NORMALISED = (
    lambda: models.realnvp_mlp((1, 4, 4), depth=2, hidden=(16,), norm="batchnorm"),
    IMAGES,
    IMAGE_SETTINGS | {"epochs": 20, "batch_size": 40},
)


def train(case, **more):
    build, examples, settings = {**CASES, "batch norm": NORMALISED}[case]
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
    """`fit` draws a seed from the global generator, which is another in every process."""
    torch.manual_seed(0)
    flow = models.nice_2d()
    torch.manual_seed(global_seed)
    return training.fit(flow, data.TwoMoons(), steps=3, batch_size=64, progress=False).loss


def interrupt_at(number):
    """Ctrl-C in every process at once, when Adam is to make a step; returns what Adam does else."""
    step, calls = torch.optim.Adam.step, itertools.count()

    def interrupted(self):
        if next(calls) == number:
            raise KeyboardInterrupt
        return step(self)

    torch.optim.Adam.step = interrupted
    return step


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
    told["batch norm"] = train("batch norm")
    told["first loss"] = first_loss()
    told["without a seed"] = losses_without_a_seed(100 + PartialState().process_index)
    step, training.SAVE_EVERY = interrupt_at(25), 0
    told["cut off"] = train("images", run=folder / "cut off")
    torch.optim.Adam.step = step
    told["resumed"] = train("images", run=folder / "cut off", resume=True)
    told |= {"writes": len(written), "world": PartialState().num_processes}
    torch.save(told, folder / f"{PartialState().process_index}.pt")


def fork(work, folder, **environment):
    """A process of its own, which finds torch imported; on the CPU even where there is a GPU."""

    def start():
        os.environ |= {"ACCELERATE_USE_CPU": "true", **environment}
        AcceleratorState._reset_state(reset_partial_state=True)
        work(folder)

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    return process


def wait_for(*processes):
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes share, as torchrun tells them, and what each of them told."""
    folder = tmp_path_factory.mktemp("two")
    world = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    world |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    wait_for(*[fork(do_everything, folder, **world, **rank) for rank in ranks])
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


@functools.cache
def train_alone(case):
    return train(case)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_follow_the_curve_of_one_to_the_same_weights(case, two, on_the_cpu):
    alone = train_alone(case)
    for told in two[1]:
        assert_close(torch.tensor(told[case]["loss"]), torch.tensor(alone["loss"]), 1e-4)
        for name, tensor in alone["weights"].items():
            assert_close(told[case]["weights"][name].double(), tensor.double(), 1e-4)


def test_batch_norm_of_a_share_of_the_batch_learns_as_much(two, on_the_cpu):
    """Statistics of 20 rows are not those of 40, so the curves differ, and end close together."""
    alone = train("batch norm")["evaluations"]
    for told in two[1]:
        shared = told["batch norm"]["evaluations"]
        for loss in ("loss", "validation_loss"):
            assert shared[-1][loss] != pytest.approx(alone[-1][loss], rel=1e-6)
            assert shared[-1][loss] == pytest.approx(alone[-1][loss], rel=0.02)


@pytest.mark.parametrize("case", [*CASES, "batch norm", "resumed"])
def test_both_processes_end_bit_exact(case, two):
    first, second = (told[case] for told in two[1])
    assert first["loss"] == second["loss"]
    assert all(
        torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items()
    )


def test_actnorm_starts_from_the_rows_of_both_processes(two, on_the_cpu):
    assert [told["first loss"] for told in two[1]] == pytest.approx([first_loss()] * 2, abs=1e-5)


def test_rows_held_out_are_shared_without_losing_one(two, on_the_cpu):
    alone = [line["validation_loss"] for line in train_alone("images")["evaluations"]]
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
    assert [line["step"] for line in lines] == list(range(6, 31, 6))


def test_a_run_of_two_processes_is_resumed_bit_exact(two):
    for told in two[1]:
        assert len(told["cut off"]["loss"]) == 25
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


def launch_from_a_notebook(folder):
    from accelerate import PartialState, notebook_launcher

    def train():
        flow, settings = models.nice_2d(depth=1, hidden=(4,)), {"seed": 0, "progress": False}
        history = training.fit(flow, data.TwoMoons(), steps=3, batch_size=8, **settings)
        world = PartialState()
        told = f"{world.num_processes} processes: {[round(loss, 4) for loss in history.loss]}"
        (folder / str(world.process_index)).write_text(told)

    notebook_launcher(train, num_processes=2, use_port=free_port())


def test_a_notebook_launches_two_processes(tmp_path):
    wait_for(fork(launch_from_a_notebook, tmp_path))
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first.startswith("2 processes: ")
    assert first == second
