"""Training by time: how long, the schedule, evaluations, and what is left to a resumed run.
The clock is one that the tests turn: so many seconds for an update and for an evaluation."""

from types import SimpleNamespace

import pytest
import torch

from flowlib import data, models, training
from flowlib.training import cosine, fit

IMAGES = torch.randint(
    256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Clock:
    def __init__(self, monkeypatch, look=0.0, update=1.0):
        self.now, self.rates, self.stop_at = 1_000.0, [], None
        monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: self.now))
        mean_nll, step = training._mean_nll, torch.optim.Adam.step

        def timed_look(*args):
            self.now += look
            return mean_nll(*args)

        def timed_step(optimizer):
            if len(self.rates) == self.stop_at:
                raise KeyboardInterrupt
            self.rates.append(optimizer.param_groups[0]["lr"])
            self.now += update
            step(optimizer)

        monkeypatch.setattr(training, "_mean_nll", timed_look)
        monkeypatch.setattr(torch.optim.Adam, "step", timed_step)


def train(points=IMAGES, **settings):
    torch.manual_seed(0)
    flow = models.realnvp_2d(depth=1, hidden=(4,))
    if points is IMAGES:
        flow = models.realnvp_mlp((1, 4, 4), depth=1, hidden=(4,))
        settings = {"validation": 8, **settings}
    return fit(flow, points, batch_size=8, seed=0, progress=False, **settings)


@pytest.mark.parametrize(("seconds", "update", "steps"), [(60, 1, 60), (60, 7, 9), (0.5, 1, 1)])
def test_as_many_updates_as_there_is_time_for(seconds, update, steps, monkeypatch):
    Clock(monkeypatch, update=update)
    history = train(data.TwoMoons(), seconds=seconds)
    assert len(history.loss) == steps
    assert seconds <= history.seconds < seconds + update


def test_the_cosine_is_fitted_to_the_time(monkeypatch):
    clock = Clock(monkeypatch, update=0.5)
    train(data.TwoMoons(), seconds=50, lr=0.1)
    assert clock.rates[1:] == pytest.approx([0.1 * cosine(step, 100) for step in range(1, 100)])
    assert clock.rates[0] < 0.001  # the pace is not known yet


def test_the_cosine_follows_a_pace_that_changes(monkeypatch):
    clock = Clock(monkeypatch)
    clock_update = torch.optim.Adam.step

    def slower(optimizer):
        clock_update(optimizer)
        clock.now += 2 if len(clock.rates) > 50 else 0

    monkeypatch.setattr(torch.optim.Adam, "step", slower)
    history = train(data.TwoMoons(), seconds=200, lr=0.1)
    assert len(history.loss) == 100
    assert 0 < clock.rates[-1] < 0.002


def test_evaluations_are_spread_evenly_over_the_time(monkeypatch):
    Clock(monkeypatch)
    history = train(seconds=100, evaluations=5)
    assert [line["step"] for line in history.evaluations] == [20, 40, 60, 80, 100]
    assert len(train(seconds=100).evaluations) == 10


def test_evaluations_wait_while_they_have_taken_a_tenth_of_the_time_but_for_the_last(monkeypatch):
    Clock(monkeypatch, look=4)
    history = train(seconds=100)
    begun = [line["seconds"] for line in history.evaluations]
    assert begun == [10, 40, 80, 100]
    assert history.seconds == 104
    assert history.evaluations[-1]["step"] == len(history.loss) == 88


def test_by_epochs_every_epoch_is_evaluated_whatever_it_takes(monkeypatch):
    Clock(monkeypatch, look=1_000)
    assert len(train(epochs=7).evaluations) == 7


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_is_resumed_has_the_seconds_that_were_left(ema, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    settings = {"seconds": 100, "ema": ema, "run": tmp_path / "run", "evaluations": 10}
    clock.stop_at = 33
    assert train(**settings).interrupted  # the state is that of the evaluation after 30 s
    clock.stop_at, clock.now = None, 5_000.0
    history = train(**settings, resume=True)
    assert len(history.loss) == 100 and history.seconds == pytest.approx(100)
    assert [line["step"] for line in history.evaluations] == list(range(10, 101, 10))
    expected = [cosine(step, 100) for step in range(31, 100)]
    assert clock.rates[-69:] == pytest.approx([5e-3 * factor for factor in expected])
    assert len(train(**settings, resume=True).loss) == 100
    with pytest.raises(ValueError, match="was started with seconds=100"):
        train(**settings | {"seconds": 200}, resume=True)


def test_snapshots_are_spread_over_the_time(monkeypatch):
    Clock(monkeypatch)
    history = train(data.TwoMoons(), seconds=40, snapshots=5)
    assert [snapshot.step for snapshot in history.snapshots] == [0, 10, 20, 30, 40]


def test_several_processes_are_refused(monkeypatch):
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr("accelerate.PartialState", lambda **given: two)
    with pytest.raises(ValueError, match="several processes have several clocks"):
        train(seconds=10)
