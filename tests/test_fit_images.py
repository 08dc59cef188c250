"""Training on image sets: what is seen, what is averaged, what is measured, what is written."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers import assert_close
from PIL import Image

from flowlib import Flow, checkpoints, data, losses, models, training
from flowlib.batches import make_batches
from flowlib.bijections import Chain, Diagonal, Flatten, Logit
from flowlib.checkpoints import write_grid
from flowlib.coupling import AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.networks import MLP
from flowlib.norms import BatchNorm
from flowlib.training import DivergedError, _groups, fit, reestimate_statistics

SHAPE, D = (1, 4, 4), 16
IMAGES = torch.randint(
    0, 256, (75, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
DARK, BRIGHT = IMAGES // 8, 255 - IMAGES // 8


def small_flow(**arguments):
    torch.manual_seed(0)
    return models.realnvp_mlp(SHAPE, **{"depth": 2, "hidden": (8,), **arguments})


def quick_fit(flow, images=IMAGES, **settings):
    length = {} if "epochs" in settings else {"steps": 20}
    return fit(
        flow, images, **{"batch_size": 10, "seed": 0, "progress": False, **length, **settings}
    )


def batches_of(flow, images=IMAGES, context=None, batch_size=10, validation=0, flip=False, seed=0):
    return make_batches(flow, images, context, batch_size, validation, flip, seed)


def same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def numbered(n):
    """n images that can be told apart: number i is everywhere i."""
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, *SHAPE).contiguous()


def numbers_of(images):
    return images[:, 0, 0, 0].tolist()


# Which images are seen


def test_an_image_set_is_trained_on_its_training_images():
    first, second = small_flow(), small_flow()
    losses_of_set = quick_fit(first, data.ImageSet("mine", IMAGES, None, BRIGHT, None)).loss
    assert losses_of_set == quick_fit(second, IMAGES).loss
    assert same_state(first, second)


def test_epochs_are_as_many_steps_as_whole_batches_go_into_the_data():
    first, second = small_flow(), small_flow()
    assert len(quick_fit(first, epochs=3).loss) == 3 * 7
    quick_fit(second, steps=21)
    assert same_state(first, second)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_epoch_sees_every_row_at_most_once_and_in_an_order_of_its_own(seed):
    batches = batches_of(small_flow(), numbered(75), seed=seed)
    epochs = [
        [number for i in range(7) for number in numbers_of(batches(7 * epoch + i)[0])]
        for epoch in range(4)
    ]
    assert all(len(set(epoch)) == 70 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert set().union(*epochs) == set(range(75))


def test_what_a_step_sees_depends_on_the_seed_and_the_step_alone():
    forwards, backwards = (
        {step: batches_of(small_flow())(step) for step in steps}
        for steps in (range(20), reversed(range(20)))
    )
    for step in range(20):
        assert torch.equal(forwards[step][0], backwards[step][0])
        assert torch.equal(forwards[step][2], backwards[step][2])
    other = batches_of(small_flow(), seed=1)
    assert not torch.equal(other(0)[2], forwards[0][2])
    assert len({noise.sum().item() for _, _, noise in forwards.values()}) == 20


def test_the_context_follows_its_image():
    flow = Flow(conditional_chain(), SHAPE, context_features=1)
    images = numbered(75)
    batches = batches_of(flow, images, context=torch.arange(75.0)[:, None], validation=5)
    for rows, context, noise in [*map(batches, range(14)), *batches.held_out()]:
        assert context[:, 0].tolist() == numbers_of(rows)
        assert noise.shape == rows.shape


def conditional_chain():
    mask = torch.arange(D) % 2 == 0
    return Chain(
        Dequantize(),
        Logit(),
        Flatten(SHAPE),
        AffineCoupling(mask, MLP(8, 16, (8,), 1)),
        AffineCoupling(~mask, MLP(8, 16, (8,), 1)),
    )


def test_a_conditional_flow_of_images_learns_to_use_its_context():
    torch.manual_seed(0)
    flow = Flow(conditional_chain(), SHAPE, context_features=1)
    images, context = (
        torch.cat([DARK, BRIGHT]),
        torch.tensor([[-1.0], [1.0]]).repeat_interleave(75, 0),
    )
    quick_fit(flow, images, context=context, steps=150, batch_size=50, lr=1e-2)
    with torch.no_grad():
        right, wrong = (flow.log_prob(images, sign * context, seed=0).mean() for sign in (1, -1))
    assert right > wrong + 5


def test_training_leaves_the_images_and_the_global_generator_alone(tmp_path):
    images, flow = IMAGES.clone(), small_flow(norm="batchnorm")
    state = torch.get_rng_state()
    quick_fit(flow, images, validation=5, ema=0.9, run=tmp_path / "run")
    assert torch.equal(images, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)


# The update


def test_fit_is_adam_with_clipping_warm_up_and_a_cosine_to_the_last_bit():
    flow, by_hand = small_flow(), small_flow()
    history = quick_fit(flow, steps=30, lr=2e-2, betas=(0.8, 0.95), clip=30.0)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=2e-2, betas=(0.8, 0.95), fused=True)
    batches, expected = batches_of(by_hand), []
    for step in range(30):
        optimizer.param_groups[0]["lr"] = (
            2e-2 * min(1.0, 20 * (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / 30))
        )
        images, _, noise = batches(step)
        z, log_det = by_hand(images, noise=noise)
        loss = (z.square().sum(1) / 2 + D / 2 * math.log(2 * math.pi) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 30.0)
        optimizer.step()
        expected.append(loss.item())
    assert history.loss == pytest.approx(expected, rel=1e-6)
    assert same_state(flow, by_hand)


def gradient_norms(monkeypatch):
    """The norm of the gradient of all weights at every step of Adam from now on."""
    norms, step = [], torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    return norms


def test_clip_bounds_the_norm_of_the_gradient_of_all_weights_together(monkeypatch):
    norms = gradient_norms(monkeypatch)
    quick_fit(small_flow())
    free = norms.copy()
    norms.clear()
    quick_fit(small_flow(), clip=min(free))
    assert len(norms) == len(free) == 20
    assert max(norms) <= min(free) * 1.0001 < max(free)
    assert norms[0] == pytest.approx(min(free), rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.01] * 3),
        ("cosine", [0.005 * (1 + math.cos(math.pi * step / 210)) for step in (69, 139, 209)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, expected):
    history = quick_fit(
        small_flow(),
        IMAGES.repeat(10, 1, 1, 1)[:705],
        epochs=3,
        lr=0.01,
        schedule=schedule,
        validation=5,
    )
    assert [line["lr"] for line in history.evaluations] == pytest.approx(expected)


# Averaged weights


def weights_after(steps, **settings):
    """The weights after each step, and what the flow ends with."""
    flow = small_flow(norm="actnorm")
    kept = quick_fit(flow, steps=steps, snapshots=steps + 1, schedule="constant", **settings)
    return [dict(s.flow.named_parameters()) for s in kept.snapshots], flow, kept.loss


def test_the_average_is_the_one_worked_out_by_hand():
    """Averaging leaves the weights that are trained alone, so that they are those without it."""
    (first, *others), _, plain = weights_after(60)
    averages, flow, losses = weights_after(60, ema=0.8)
    assert losses == plain
    average = {name: weight.double() for name, weight in first.items()}
    for step, weights in enumerate(others):
        decay = min(0.8, (1 + step) / (10 + step))
        for name, weight in weights.items():
            average[name] = decay * average[name] + (1 - decay) * weight.double()
            assert_close(averages[step + 1][name].double(), average[name], 1e-6)
    assert any((weight - others[-1][name]).abs().max() > 1e-3 for name, weight in average.items())
    for name, weight in flow.named_parameters():
        assert torch.equal(weight, averages[-1][name])


def statistics_of_batches(flow, batches):
    """Mean and variance of what arrives at every BatchNorm, averaged over batches."""
    norms = [module for module in flow.modules() if isinstance(module, BatchNorm)]
    seen = {norm: [] for norm in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda norm, args: seen[norm].append(args[0].double()))
        for norm in norms
    ]
    with torch.no_grad():
        for batch in batches:
            flow.train()(*batch)
    for hook in hooks:
        hook.remove()
    return [
        (
            torch.stack([x.mean(0) for x in inputs]).mean(0),
            torch.stack([x.var(0, correction=0) for x in inputs]).mean(0),
        )
        for inputs in seen.values()
    ]


def test_averaged_weights_get_statistics_of_their_own():
    flow = small_flow(norm="batchnorm")
    raw = small_flow(norm="batchnorm")
    quick_fit(raw, steps=60, lr=2e-2, validation=5)
    quick_fit(flow, steps=60, lr=2e-2, ema=0.95, validation=5)
    batches = batches_of(flow, validation=5)
    expected = statistics_of_batches(copy.deepcopy(flow), map(batches, range(20)))
    of_raw_weights = statistics_of_batches(raw, map(batches, range(20)))
    norms = [module for module in flow.modules() if isinstance(module, BatchNorm)]
    for norm, (mean, var) in zip(norms, expected, strict=True):
        assert_close(norm.running_mean.double(), mean, 1e-5)
        assert_close(norm.running_var.double(), var, 1e-5)
    assert not torch.allclose(norms[1].running_var.double(), of_raw_weights[1][1], rtol=1e-3)


def test_statistics_are_estimated_afresh_whatever_they_were():
    first, second = small_flow(norm="batchnorm"), small_flow(norm="batchnorm")
    for norm in (module for module in second.modules() if isinstance(module, BatchNorm)):
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(9.0)
    for flow in (first, second):
        reestimate_statistics(flow, map(batches_of(flow), range(3)))
        assert {module.momentum for module in flow.modules() if isinstance(module, BatchNorm)} == {
            0.1
        }
    assert same_state(first, second)


@pytest.mark.parametrize(("steps", "batches"), [(3, 3), (30, 20)])
def test_statistics_come_from_no_more_batches_than_were_trained_on(steps, batches, monkeypatch):
    counts = []

    def counting(flow, batches):
        counts.append(len(list(batches)))

    monkeypatch.setattr(training, "reestimate_statistics", counting)
    quick_fit(small_flow(norm="batchnorm"), steps=steps, ema=0.9)
    assert counts == [batches]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_evaluating_with_statistics_of_the_data_is_close_to_training_with_those_of_the_batch(ema):
    rows = IMAGES.repeat(4, 1, 1, 1)
    last = quick_fit(
        small_flow(norm="batchnorm"), rows, epochs=6, batch_size=75, validation=75, ema=ema
    ).evaluations[-1]
    assert last["validation_loss"] == pytest.approx(last["loss"], rel=0.05)


# What is measured


@pytest.mark.parametrize("norm", [None, "batchnorm"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_rows_held_out_are_the_last_and_never_trained_on(norm, ema):
    first, second = small_flow(norm=norm), small_flow(norm=norm)
    before, after = (
        quick_fit(first, validation=25, ema=ema),
        quick_fit(second, torch.cat([IMAGES[:50], BRIGHT[:25]]), validation=25, ema=ema),
    )
    assert same_state(first, second)
    assert before.loss == after.loss
    assert before.evaluations[-1]["validation_loss"] != after.evaluations[-1]["validation_loss"]
    third = small_flow(norm=norm)
    quick_fit(third, torch.cat([IMAGES[:49], BRIGHT[:26]]), validation=25, ema=ema)
    assert not same_state(first, third)


def test_rows_held_out_come_in_order_with_the_same_noise_every_time():
    batches = batches_of(small_flow(), IMAGES.repeat(9, 1, 1, 1), validation=601)
    first, second = list(batches.held_out()), list(batches.held_out())
    assert torch.equal(torch.cat([rows for rows, _, _ in first]), IMAGES.repeat(9, 1, 1, 1)[-601:])
    assert all(torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))


def test_half_of_the_images_are_mirrored_and_those_held_out_are_not():
    plain, mirrored = (batches_of(small_flow(), validation=5, flip=flip) for flip in (False, True))
    share = []
    for step in range(40):
        (x, _, noise), (seen, _, same_noise) = plain(step), mirrored(step)
        turned = (seen != x).flatten(1).any(1)
        assert torch.equal(seen, torch.where(turned.view(-1, 1, 1, 1), x.flip(-1), x))
        assert torch.equal(noise, same_noise)
        share.append(turned.float().mean().item())
    assert 0.4 < sum(share) / len(share) < 0.6
    assert len(set(share)) > 3  # chosen anew at every step
    assert torch.equal(mirrored(7)[0], batches_of(small_flow(), validation=5, flip=True)(7)[0])
    assert all(
        torch.equal(first[0], second[0])
        for first, second in zip(plain.held_out(), mirrored.held_out())
    )


def test_only_images_can_be_mirrored():
    points = torch.zeros(8, 2)
    with pytest.raises(
        ValueError, match=r"flip mirrors images \(C, H, W\), not data of shape \(2,\)"
    ):
        fit(models.realnvp_2d(depth=1), points, flip=True, steps=1, seed=0)


def conv_flow():
    torch.manual_seed(0)
    return models.realnvp_image(SHAPE, scales=1, width=4, blocks=1)


def test_weight_decay_pulls_on_the_magnitudes_of_weight_normed_layers_alone():
    flow = conv_flow()
    before = {name: p.detach().clone() for name, p in flow.named_parameters()}
    for p in flow.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(_groups(flow, 0.5), lr=1.0, weight_decay=0.5).step()
    for name, p in flow.named_parameters():
        assert_close(
            p.detach(), before[name] * (0.5 if name.endswith("weight.original0") else 1.0), 1e-6
        )


def test_a_run_with_weight_decay_is_another_run():
    plain, decayed = (
        quick_fit(conv_flow(), steps=3, weight_decay=decay).loss for decay in (0, 10.0)
    )
    assert plain[0] == decayed[0] and plain[1:] != decayed[1:]


@pytest.mark.parametrize(
    ("flow", "decay", "complaint"),
    [
        (small_flow, 0.1, "weight_decay applies to weight-normed layers, and this flow has none"),
        (conv_flow, -1, "Invalid weight_decay value: -1.0"),
    ],
)
def test_weight_decay_that_makes_no_sense_is_refused(flow, decay, complaint):
    with pytest.raises(ValueError, match=complaint):
        quick_fit(flow(), weight_decay=decay)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_validation_loss_is_the_mean_over_all_rows_held_out(ema):
    """601 rows come in two pieces of different length, which count by their rows."""
    flow, rows = small_flow(norm="batchnorm"), torch.cat([IMAGES.repeat(8, 1, 1, 1), DARK, BRIGHT])
    reported = quick_fit(flow, rows, validation=601, ema=ema).evaluations[-1]["validation_loss"]
    with torch.no_grad():
        pieces = [
            flow(images, None, noise)
            for images, _, noise in batches_of(flow, rows, validation=601).held_out()
        ]
        exact = torch.cat(
            [
                z.square().sum(1) / 2 + D / 2 * math.log(2 * math.pi) - log_det
                for z, log_det in pieces
            ]
        )
        redrawn = -flow.log_prob(rows[-601:], seed=5)
    assert reported == pytest.approx(exact.mean().item(), rel=1e-5)
    assert abs(reported - redrawn.mean().item()) < 5 * redrawn.std().item() / 601**0.5


def test_an_evaluation_holds_the_mean_loss_of_its_epoch_in_nats_and_bits():
    history = quick_fit(small_flow(), epochs=3, validation=5)
    assert [line["step"] for line in history.evaluations] == [7, 14, 21]
    assert [line["evaluation"] for line in history.evaluations] == [1, 2, 3]
    for epoch, line in enumerate(history.evaluations):
        assert line["loss"] == pytest.approx(sum(history.loss[7 * epoch : 7 * epoch + 7]) / 7)
        assert line["bits_per_dim"] == pytest.approx(line["loss"] / (D * math.log(2)))
        assert line["validation_bits_per_dim"] == pytest.approx(
            line["validation_loss"] / (D * math.log(2))
        )


def test_a_last_epoch_that_is_cut_short_is_evaluated_too():
    evaluations = quick_fit(small_flow(), steps=17, validation=5).evaluations
    assert [line["step"] for line in evaluations] == [7, 14, 17]
    assert [line["evaluation"] for line in evaluations] == [1, 2, 3]


@pytest.mark.parametrize("norm", [None, "actnorm", "batchnorm"])
def test_measuring_and_saving_on_the_way_change_nothing(norm, tmp_path):
    first, second = small_flow(norm=norm), small_flow(norm=norm)
    alone = quick_fit(first, IMAGES[:70], epochs=3)
    watched = quick_fit(
        second, IMAGES[:75], epochs=3, validation=5, run=tmp_path / "run", snapshots=4
    )
    assert alone.loss == watched.loss
    assert same_state(first, second)


# What is written


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A run that soon gets worse on the rows held out, which are unlike those trained on."""
    folder, flow = tmp_path_factory.mktemp("spoilt") / "run", small_flow()
    history = quick_fit(
        flow,
        torch.cat([DARK, DARK[:65], BRIGHT[:10]]),
        epochs=4,
        lr=1e-2,
        validation=10,
        ema=0.5,
        schedule="constant",
        run=folder,
    )
    return folder, flow, history


def test_metrics_are_the_evaluations(spoilt):
    folder, _, history = spoilt
    assert [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ] == history.evaluations


def test_best_is_the_lowest_validation_loss_and_is_what_a_folder_loads_as(spoilt):
    folder, flow, history = spoilt
    validation = [line["validation_loss"] for line in history.evaluations]
    assert validation[-1] > min(validation)
    best, last = (
        checkpoints.read_card(folder / f"{name}.safetensors")["results"]
        for name in ("best", "last")
    )
    assert best == history.evaluations[validation.index(min(validation))]
    assert last == history.evaluations[-1]
    assert same_state(checkpoints.load(folder), checkpoints.load(folder / "best.safetensors"))
    assert same_state(checkpoints.load(folder / "last.safetensors"), flow)
    assert not same_state(checkpoints.load(folder), flow)


def test_keep_best_ends_with_the_lowest_validation_loss(spoilt):
    folder, _, history = spoilt
    best, flow = checkpoints.load(folder), small_flow()
    settings = {"lr": 1e-2, "validation": 10, "ema": 0.5, "schedule": "constant"}
    rows = torch.cat([DARK, DARK[:65], BRIGHT[:10]])
    kept = quick_fit(flow, rows, epochs=4, keep_best=True, **settings)
    assert without_seconds(kept) == without_seconds(history)
    assert same_state(flow, best)


def without_seconds(history):
    return [{**line, "seconds": 0} for line in history.evaluations]


def test_without_rows_held_out_a_folder_loads_as_its_last_flow(tmp_path):
    flow = small_flow(norm="batchnorm")
    quick_fit(flow, run=tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert same_state(checkpoints.load(tmp_path / "run"), flow)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_evaluation_leaves_a_grid_of_36_samples(channels, tmp_path):
    torch.manual_seed(0)
    flow = models.realnvp_mlp((channels, 4, 4), depth=1, hidden=(4,))
    quick_fit(flow, IMAGES.expand(-1, channels, -1, -1), epochs=2, run=tmp_path / "run")
    pictures = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in pictures] == ["0000007.png", "0000014.png"]
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape == (31, 31, 3)
        assert (pixels[::5] == 128).all()
        assert (pixels[:, ::5] == 128).all()
    drawn = flow.sample(36, seed=0)
    for i, image in enumerate(drawn):
        top, left = 5 * (i // 6) + 1, 5 * (i % 6) + 1
        tile = torch.from_numpy(pixels[top : top + 4, left : left + 4].copy()).permute(2, 0, 1)
        assert torch.equal(tile, image.expand(3, 4, 4))
    write_grid(drawn, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_a_flow_of_points_leaves_no_samples_and_ten_evaluations(tmp_path):
    history = fit(
        models.nice_2d(depth=1, hidden=(4,)),
        data.TwoMoons(),
        steps=100,
        batch_size=8,
        seed=0,
        progress=False,
        run=tmp_path / "run",
    )
    assert not (tmp_path / "run" / "samples").exists()
    assert [line["step"] for line in history.evaluations] == list(range(10, 101, 10))
    assert "bits_per_dim" not in history.evaluations[0]


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0}, "clip must be positive or None, got 0"),
        ({"clip": -1.0}, "clip must be positive or None, got -1.0"),
        ({"clip": math.nan}, "clip must be positive or None, got nan"),
        ({"ema": 0}, "ema must lie between 0 and 1, or be None, got 0"),
        ({"ema": 1}, "ema must lie between 0 and 1, or be None, got 1"),
        ({"ema": math.nan}, "ema must lie between 0 and 1, or be None, got nan"),
        ({"schedule": "linear"}, "schedule must be cosine or constant, got 'linear'"),
        ({"precision": "int8"}, "precision must be auto, bfloat16, float32, got 'int8'"),
        ({"keep_best": True}, "keep_best needs rows held out"),
        ({"resume": True}, "resume=True needs the folder to go on with"),
        ({"validation": 75}, "validation=75 leaves none of 75 rows to train on"),
        ({"validation": 1_000}, "validation=1000 leaves none of 75 rows to train on"),
        ({"validation": -1}, "validation must be an integer of at least 0, got -1"),
        ({"validation": 0.1}, "validation must be an integer of at least 0, got 0.1"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1, got 1.5"),
        ({"seconds": 0, "steps": None}, "seconds must be positive, got 0.0"),
        ({"seconds": math.nan, "steps": None}, "seconds must be positive, got nan"),
        ({"seconds": 2, "steps": 10}, "give one of steps, epochs and seconds"),
        ({"epochs": 2, "steps": 10}, "give one of steps, epochs and seconds"),
        (
            {"seed": None, "run": "never made"},
            "a run that can be resumed needs a seed: seed=0, say",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_senseless_settings_are_refused_and_leave_the_flow_alone(
    settings, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flow = small_flow(norm="actnorm").train()
    with pytest.raises(ValueError, match=message):
        quick_fit(flow, **settings)
    assert same_state(flow, small_flow(norm="actnorm"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2}, "a density has no epochs: say how many steps"),
        ({"validation": 5}, "validation holds out rows of a data set; a density has none"),
    ],
    ids=["epochs", "validation"],
)
def test_a_density_has_no_epochs_and_no_rows(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(models.realnvp_2d(), data.TwoMoons(), seed=0, progress=False, **settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.float(), "begins with Dequantize, so it takes uint8 images, got torch.float32"),
        (IMAGES.long(), "begins with Dequantize, so it takes uint8 images, got torch.int64"),
        (IMAGES[:, 0], r"takes data of shape \(B, 1, 4, 4\), got \(75, 4, 4\)"),
        (IMAGES[:0], r"the batch is empty: got data of shape \(0, 1, 4, 4\)"),
        (
            data.ImageSet("mine", IMAGES[..., :3], None, None, None),
            r"takes data of shape \(B, 1, 4, 4\), got \(75, 1, 4, 3\)",
        ),
    ],
    ids=["float", "int64", "no channel", "empty", "image set"],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        quick_fit(small_flow(), images)


def test_images_with_more_levels_than_the_flow_has_are_refused():
    with pytest.raises(ValueError, match=r"takes 0 \.\.\. 31, got 255"):
        quick_fit(small_flow(bits=5))
    few = data.ImageSet("few", IMAGES // 8, None, None, None, bits=5)
    text = "few has images of 5 bits, the flow takes 8: build it with bits=5"
    with pytest.raises(ValueError, match=text):
        quick_fit(small_flow(bits=8), few)
    assert len(quick_fit(small_flow(bits=5), few).loss) == 20
    assert len(quick_fit(small_flow(bits=5), IMAGES // 8).loss) == 20


def test_a_flow_that_no_builder_made_cannot_have_a_run(tmp_path):
    with pytest.raises(ValueError, match="only flows from a builder"):
        quick_fit(
            Flow(Chain(Dequantize(), Logit(), Flatten(SHAPE), Diagonal(D)), SHAPE),
            run=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_keeps_its_last_healthy_evaluation(tmp_path, monkeypatch):
    flow, run, step = small_flow(), tmp_path / "run", torch.optim.Adam.step
    calls = itertools.count(1)

    def spoil(self):
        step(self)
        if next(calls) == 10:
            next(flow.parameters()).data.mul_(math.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    with pytest.raises(DivergedError):
        quick_fit(flow, epochs=4, run=run)
    assert checkpoints.read_card(run)["results"]["step"] == 7
    assert same_state(checkpoints.load(run), flow)
    monkeypatch.undo()
    assert len(quick_fit(small_flow(), epochs=4, run=run, resume=True).loss) == 28


def test_trained_bits_per_dim_of_uniform_noise_end_between_8_and_the_start():
    """No flow can be better than 8 bits on uniform noise of 8 bits."""
    flow = small_flow()
    quick_fit(flow, epochs=10)
    fresh = torch.randint(
        0, 256, (2_000, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        trained, start = (
            losses.bits_per_dim(f.log_prob(fresh, seed=0), SHAPE).mean().item()
            for f in (flow, small_flow())
        )
    assert 8 < trained < start
