import contextlib
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import assert_close
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch.distributions import MultivariateNormal, Normal
from torch.utils.data import TensorDataset

from flowlib import Flow, data, models
from flowlib.batches import make_batches
from flowlib.bijections import Bijection, Chain, Diagonal, Inverse, Logit
from flowlib.coupling import AffineCoupling
from flowlib.networks import MLP, ConvResNet
from flowlib.norms import ActNorm, BatchNorm
from flowlib.training import DivergedError, History, fit

MOONS = data.TwoMoons(noise=0.1)
POINTS = MOONS.sample(300, seed=0)
FIRST_CONSTANT = POINTS.double() * (torch.arange(300)[:, None] == 7)  # row 7 comes later
CONTEXT = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))


def small_flow(context_features=0):
    torch.manual_seed(0)
    return models.realnvp_2d(depth=2, hidden=(8,), context_features=context_features)


def quick_fit(flow, points=POINTS, **settings):
    return fit(
        flow, points, **({"steps": 12, "batch_size": 64, "seed": 0, "progress": False} | settings)
    )


def first_batch(flow, points):
    return make_batches(
        flow, points, context=None, batch_size=64, validation=0, flip=False, seed=0
    )(0)[0]


def same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


# What a fit returns

SOURCES = {
    "density": (MOONS, None),
    "tensor": (POINTS, None),
    "tensor with context": (POINTS, CONTEXT),
}
every_source = pytest.mark.parametrize("source", SOURCES)


@every_source
def test_the_same_seeds_give_the_same_weights_and_losses_bit_for_bit(source):
    points, context = SOURCES[source]
    flows, histories = [], []
    for seed in (0, 0, 1):
        flows.append(small_flow(0 if context is None else 3))
        histories.append(quick_fit(flows[-1], points, context=context, seed=seed))
    assert histories[0].loss == histories[1].loss != histories[2].loss
    assert same_state(flows[0], flows[1])
    assert not same_state(flows[0], flows[2])


@every_source
@pytest.mark.parametrize("steps", [1, 50, 51])
def test_history_holds_one_finite_loss_per_step_and_the_flow_is_in_evaluation_mode(source, steps):
    points, context = SOURCES[source]
    flow = small_flow(0 if context is None else 3).train()
    history = quick_fit(flow, points, context=context, steps=steps)
    assert len(history.loss) == steps
    assert all(isinstance(loss, float) and math.isfinite(loss) for loss in history.loss)
    assert not history.interrupted
    assert history.seconds > 0
    assert not any(module.training for module in flow.modules())


def test_a_batch_larger_than_the_data_is_the_data():
    assert len(quick_fit(small_flow(), batch_size=10_000, steps=3).loss) == 3


def test_training_changes_every_parameter():
    flow = small_flow()
    history = quick_fit(flow, snapshots=1)
    before = dict(history.snapshots[0].flow.named_parameters())
    assert all(
        not torch.equal(parameter, before[name]) for name, parameter in flow.named_parameters()
    )


def test_first_loss_is_the_mean_nll_of_the_first_batch():
    """The first batch starts ActNorm and is trained on first; couplings start as the identity."""
    flow = small_flow()
    history = quick_fit(flow, MOONS, snapshots=1)
    with torch.no_grad():
        expected = -history.snapshots[0].flow.log_prob(first_batch(flow, MOONS)).mean()
    assert history.loss[0] == pytest.approx(expected.item(), abs=1e-5)


def test_actnorm_starts_from_the_first_batch():
    history = quick_fit(small_flow(), MOONS, snapshots=1)
    with torch.no_grad():
        latents, _ = history.snapshots[0].flow(first_batch(small_flow(), MOONS))
    assert_close(latents.mean(0), torch.zeros(2), 1e-5)
    assert_close(latents.std(0, correction=0), torch.ones(2), 1e-5)


def test_every_actnorm_of_a_chain_starts_from_what_arrives_at_it():
    flow = Flow(Chain(Diagonal(2), ActNorm(2), Diagonal(2), ActNorm(2)), shape=(2,))
    with torch.no_grad():
        flow.bijection[0].log_scale.fill_(1.0)
        flow.bijection[2].log_scale.fill_(-2.0)
    history = quick_fit(flow, batch_size=300, snapshots=1)
    for state in history.snapshots[0].flow.intermediates(POINTS)[2::2]:
        assert_close(state.std(0, correction=0), torch.ones(2), 1e-4)


def test_actnorm_that_is_initialised_is_not_started_again():
    flow = small_flow()
    flow.bijection[0].initialise(1_000 + POINTS)
    start = flow.bijection[0].shift.clone()
    history = quick_fit(flow, lr=1e-6, snapshots=1)
    assert torch.equal(history.snapshots[0].flow.bijection[0].shift, start)


@pytest.mark.parametrize(
    ("snapshots", "steps", "expected"),
    [
        (0, 12, []),
        (1, 12, [0]),
        (2, 12, [0, 12]),
        (4, 12, [0, 4, 8, 12]),
        (3, 121, [0, 60, 121]),
        (9, 2, [0, 1, 2]),
    ],
)
def test_snapshots_are_evenly_spaced_from_before_the_first_step_to_after_the_last(
    snapshots, steps, expected
):
    assert [
        snapshot.step
        for snapshot in quick_fit(small_flow(), steps=steps, snapshots=snapshots).snapshots
    ] == expected


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("norm", ["actnorm", "batchnorm"])
def test_the_last_snapshot_is_the_flow_that_is_returned(norm, ema):
    images = torch.randint(256, (64, 1, 4, 4), dtype=torch.uint8)
    flow = models.realnvp_mlp((1, 4, 4), depth=2, hidden=(8,), norm=norm)
    history = quick_fit(flow, images, batch_size=16, snapshots=2, ema=ema, lr=1e-2)
    assert same_state(history.snapshots[-1].flow, flow)


def test_snapshots_are_copies_in_evaluation_mode_from_start_to_end():
    flow, start = small_flow(), small_flow()
    history = quick_fit(flow, snapshots=3)
    first, middle, last = (snapshot.flow for snapshot in history.snapshots)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.bijection[1:].parameters(), start.bijection[1:].parameters())
    )
    assert same_state(last, flow)
    assert not same_state(middle, flow)
    for copy in (first, middle, last):
        assert not copy.training
        assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in flow.parameters())


def test_a_short_run_closes_most_of_the_gap_to_the_truth():
    torch.manual_seed(0)
    flow = models.realnvp_2d(depth=6, hidden=(32, 32))
    start = quick_fit(flow, MOONS, steps=400, batch_size=256, snapshots=1).snapshots[0].flow
    test = MOONS.sample(4_000, seed=99)
    with torch.no_grad():
        gap_before, gap = (
            (MOONS.log_prob(test) - model.log_prob(test)).mean().item() for model in (start, flow)
        )
    assert gap_before > 0.8  # standardised moons against a Gaussian
    assert -0.01 < gap < 0.25


def test_a_conditional_flow_learns_to_use_its_context():
    """x = context + noise of 0.1: the context is worth log(1 / 0.1) = 2.3 nats per dimension."""
    rng = torch.Generator().manual_seed(0)
    context = torch.randn(1_000, 2, generator=rng)
    points = context + 0.1 * torch.randn(1_000, 2, generator=rng)
    torch.manual_seed(0)
    flow = models.realnvp_2d(depth=4, hidden=(32,), context_features=2)
    quick_fit(flow, points, context=context, steps=300, batch_size=256, lr=1e-2)
    with torch.no_grad():
        right, wrong = (
            flow.log_prob(points, context).mean(),
            flow.log_prob(points, context.flip(0)).mean(),
        )
    assert (
        right > 0.0
    )  # the true value is 2 (log 10) - log(2 pi e) = 1.77; without the context at best -2.8
    assert wrong < right - 2


def test_batch_norm_trains_and_leaves_running_statistics():
    flow = Flow(Chain(BatchNorm(2), Diagonal(2)), shape=(2,))
    quick_fit(flow, 5 + POINTS, steps=100)
    assert (flow.bijection[0].running_mean - (5 + POINTS).mean(0)).abs().max() < 0.2
    assert not flow.training


def test_an_actnorm_that_runs_backwards_starts_from_what_arrives_at_it():
    flow = Flow(Chain(Diagonal(2), Inverse(ActNorm(2))), shape=(2,))
    with torch.no_grad():
        flow.bijection[0].log_scale.fill_(3.0)
    start = quick_fit(flow, 5 + POINTS, batch_size=300, snapshots=1).snapshots[0].flow
    latents = start.intermediates(5 + POINTS)[-1]
    assert_close(latents.mean(0), torch.zeros(2), 1e-4)
    assert_close(latents.std(0, correction=0), torch.ones(2), 1e-4)


def test_a_float64_flow_is_trained_on_a_density():
    flow = Flow(AffineCoupling(torch.tensor([True, False]), MLP(1, 2, (8,))), shape=(2,)).double()
    assert len(quick_fit(flow, MOONS).loss) == 12


# What may be learned from


def mixture():
    return GaussianMixture(2, random_state=0).fit(POINTS.numpy())


DENSITIES = {
    "torch": lambda: MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "torch, a batch": lambda: Normal(torch.zeros(2), torch.ones(2)),
    "a flow's distribution": lambda: trained_flow().distribution(),
    "a flow": lambda: trained_flow(),
    "scikit-learn's mixture": mixture,
    "scikit-learn's kernel density": lambda: KernelDensity(bandwidth=0.3).fit(POINTS.numpy()),
}


def trained_flow():
    flow = small_flow()
    flow.bijection[0].initialise(POINTS)
    return flow.eval()


@pytest.mark.parametrize("build", DENSITIES.values(), ids=DENSITIES)
def test_densities_of_other_libraries_are_drawn_from_anew_at_every_step(build):
    density, flow, again = build(), small_flow(), small_flow()
    draws = make_batches(flow, density, None, 4, 0, False, seed=0)
    points = torch.cat([draws(step)[0] for step in range(0, 300, 50)])
    assert len(points.unique(dim=0)) == len(points)
    torch.manual_seed(5)
    caller = torch.get_rng_state()
    first = quick_fit(flow, density, steps=3).loss
    assert torch.equal(torch.get_rng_state(), caller)
    torch.manual_seed(6)
    assert quick_fit(again, density, steps=3).loss == first


class Table:
    """What a data frame is to us: it becomes an array, and its `sample` draws rows of it."""

    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return self.rows.numpy()

    def sample(self, n=None, frac=None, random_state=None):
        raise AssertionError


@pytest.mark.parametrize(
    "points",
    [
        POINTS.numpy(),
        POINTS.double(),
        POINTS.tolist(),
        Table(POINTS),
        POINTS.flip(0).numpy()[::-1],
        POINTS * torch.ones((), requires_grad=True),
    ],
    ids=["array", "float64", "list", "table", "reversed view", "attached"],
)
def test_rows_in_any_form_are_the_same_rows(points):
    assert quick_fit(small_flow(), points).loss == quick_fit(small_flow()).loss


@pytest.mark.parametrize(
    "context",
    [CONTEXT.numpy(), CONTEXT.double(), CONTEXT * torch.ones((), requires_grad=True)],
    ids=["array", "float64", "attached"],
)
def test_a_context_in_any_form_is_the_same_context(context):
    expected = quick_fit(small_flow(3), context=CONTEXT).loss
    assert quick_fit(small_flow(3), context=context).loss == expected


class Odd:
    def __init__(self, draw):
        self.sample = draw


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (Odd(lambda n, seed: MOONS.sample(5, 0)), "asked for 6400 points and drew 5"),
        (Odd(lambda n: MOONS.sample(n)), "sample of a Odd must take n and seed"),
        (
            Odd(lambda n, seed: torch.zeros(n, 3)),
            r"takes data of shape \(B, 2\), got \(6400, 3\)",
        ),
        (type("MNIST", (), {"train": True})(), "got a MNIST; .* give the images, a uint8 tensor"),
    ],
    ids=["too few", "no seed", "too wide", "torchvision"],
)
def test_densities_that_are_none_are_refused(density, message):
    with pytest.raises(ValueError, match=message):
        quick_fit(small_flow(), density)


def test_a_density_may_draw_arrays():
    density = Odd(lambda n, seed: MOONS.sample(n, seed).double().numpy())
    assert quick_fit(small_flow(), density).loss == quick_fit(small_flow(), MOONS).loss


# Wherever it is called


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_fit_takes_gradients_whatever_surrounds_it(around):
    flow, expected = small_flow(), small_flow()
    with around():
        losses = quick_fit(flow).loss
    assert losses == quick_fit(expected).loss
    assert same_state(flow, expected)


def test_there_must_be_something_to_train():
    frozen = quick_fit(small_flow(), snapshots=1).snapshots[0].flow
    with torch.inference_mode():
        inferred = small_flow()
    for flow in (frozen, inferred, Flow(Chain(Logit()), shape=(2,))):
        with pytest.raises(ValueError, match="there is nothing to train"):
            quick_fit(flow)
    assert len(quick_fit(frozen.requires_grad_(True)).loss) == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_refused(dtype):
    with pytest.raises(ValueError, match=r"is too coarse: use flow.float\(\)"):
        quick_fit(small_flow().to(dtype))


def test_an_accelerator_of_the_caller_changes_nothing():
    expected = quick_fit(small_flow()).loss
    Accelerator(mixed_precision="bf16", cpu=True)
    try:
        assert quick_fit(small_flow()).loss == expected
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_layers_that_draw_follow_the_seed_and_leave_the_global_generator_alone():
    def dropping():
        flow = small_flow()
        flow.bijection[1].network.insert(2, torch.nn.Dropout(0.5))
        return flow

    flow, again, other = dropping(), dropping(), dropping()
    first = quick_fit(flow, seed=1).loss
    torch.manual_seed(5)
    caller = torch.get_rng_state()
    assert quick_fit(again, seed=1).loss == first
    assert torch.equal(torch.get_rng_state(), caller)
    assert quick_fit(other, seed=2).loss != first


@pytest.mark.parametrize(("width", "threads"), [(8, 1), (3_000, 2)])
def test_small_steps_run_on_one_thread_and_large_ones_on_those_there_are(width, threads):
    seen = []

    class Watching:
        def sample(self, n, seed):
            seen.append(torch.get_num_threads())
            return MOONS.sample(n, seed)

    torch.set_num_threads(2)
    try:
        flow = models.realnvp_2d(depth=1, hidden=(width, width))
        quick_fit(flow, Watching(), steps=1, batch_size=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [threads]


# Precision


def seen_by(flow, kind):
    """The dtypes that modules of a kind put out in training and in evaluation, while `fit` runs."""
    seen = {True: set(), False: set()}
    for module in flow.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda m, args, out: seen[m.training].add(out.dtype))
    return seen


def conv_flow():
    torch.manual_seed(0)
    return models.realnvp_image((1, 4, 4), scales=1, width=4, blocks=1)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("build", [conv_flow, lambda: models.realnvp_mlp((1, 4, 4), depth=1)])
def test_auto_takes_bfloat16_for_convolutions_where_the_hardware_has_it(build, there, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    flow = build()
    seen = seen_by(flow, (ConvResNet, MLP))
    images = torch.randint(256, (24, 1, 4, 4), dtype=torch.uint8)
    quick_fit(flow, images, steps=2, batch_size=8, validation=8)
    low = there and build is conv_flow
    assert torch.bfloat16 in seen[True] if low else seen[True] == {torch.float32}
    assert seen[False] == {torch.float32}
    flow.train()(images)
    assert torch.float32 in seen[True]  # the caller's own loops compute as ever


class Turn(Bijection):
    """A matrix product that is a layer of the flow."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.eye(2))
        self.seen = set()

    def forward(self, x, context=None):
        z = x @ self.matrix
        self.seen.add(z.dtype)
        return z, self.matrix.slogdet()[1].expand(len(x))


def test_bfloat16_is_for_the_networks_of_couplings_alone():
    torch.manual_seed(0)
    coupling = AffineCoupling(torch.tensor([True, False]), MLP(1, 2, (8,)))
    flow = Flow(Chain(Turn(), coupling), shape=(2,))
    seen = seen_by(flow, torch.nn.Linear)
    history = quick_fit(flow, precision="bfloat16", snapshots=2)
    assert seen[True] == {torch.bfloat16}
    assert flow.bijection[0].seen == {torch.float32}
    assert history.snapshots[1].flow(POINTS)[0].dtype == torch.float32
    assert not any(
        getattr(m, "bfloat16", None) is True for m in history.snapshots[0].flow.modules()
    )


def test_evaluation_is_without_tf32_and_the_callers_choice_is_restored():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = {True: set(), False: set()}

    class Looking(Diagonal):
        def forward(self, x, context=None):
            seen[self.training].add((cudnn.allow_tf32, matmul.allow_tf32))
            return super().forward(x, context)

    matmul.allow_tf32 = True
    try:
        with cudnn.flags(enabled=True, allow_tf32=True):
            quick_fit(Flow(Chain(Looking(2)), shape=(2,)), validation=20)
            assert seen == {True: {(True, True)}, False: {(False, False)}}
            assert cudnn.allow_tf32
            assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = False


# When a run ends early


class Interrupting:
    """A density whose second call is Ctrl-C; one call feeds the first 100 steps."""

    calls = 0

    def sample(self, n, seed=None):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return MOONS.sample(n, seed)


def test_ctrl_c_returns_what_was_learned_so_far():
    flow = small_flow()
    history = quick_fit(flow, Interrupting(), steps=500, snapshots=500)
    assert history.interrupted
    assert len(history.loss) == 100
    assert all(math.isfinite(loss) for loss in history.loss)
    assert history.snapshots[-1].step == 100
    assert same_state(flow, history.snapshots[-1].flow)
    assert not flow.training


class Failing(Bijection):
    """The identity; from its `after`-th training call on, its output or its gradient is NaN."""

    def __init__(self, after, where):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.after, self.where, self.calls = after, where, 0

    def forward(self, x, context=None):
        self.calls += self.training
        z = x + self.weight
        if self.calls >= self.after and self.training:
            if self.where == "output":
                z = z * math.nan
            else:
                z.register_hook(lambda gradient: gradient * math.nan)
        return z, x.new_zeros(len(x))


@pytest.mark.parametrize("after", [1, 30, 50, 51, 75, 100, 120])
@pytest.mark.parametrize("where", ["output", "gradient"])
def test_nan_ends_the_run_with_an_explanation_and_finite_weights(where, after):
    flow = Flow(Chain(Failing(after, where)), shape=(2,))
    with pytest.raises(
        DivergedError, match=r"training diverged: .*learning rate .*lr=0.005"
    ) as caught:
        quick_fit(flow, steps=120)
    assert all(parameter.isfinite().all() for parameter in flow.parameters())
    assert not flow.training
    assert len(caught.value.history.loss) <= 120


def test_the_explanation_names_the_step_at_which_the_loss_was_lost():
    flow = Flow(Chain(Failing(70, "output")), shape=(2,))
    with pytest.raises(DivergedError, match="nan at step 70"):
        quick_fit(flow, steps=120)


@pytest.mark.parametrize("rise", [9.0, 11.0])
def test_a_loss_is_lost_ten_nats_per_dimension_above_where_it_began(rise):
    class Rising(Diagonal):
        calls = 0

        def forward(self, x, context=None):
            z, log_det = super().forward(x, context)
            self.calls += self.training
            return z, log_det - (2 * rise if self.calls > 1 else 0)

    flow = Flow(Chain(Rising(2)), shape=(2,))
    expected = pytest.raises(DivergedError) if rise > 10 else contextlib.nullcontext()
    with expected:
        quick_fit(flow, steps=60, lr=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_lost_before_the_first_step_are_said_to_be(value):
    flow = small_flow()
    with torch.no_grad():
        flow.bijection[1].network[0].weight[0, 0] = value
    with pytest.raises(DivergedError, match="NaN or infinite weights before the first step"):
        quick_fit(flow)


@pytest.mark.parametrize("lr", [1.0, 1e6])
@pytest.mark.parametrize("steps", [100, 300])
def test_a_learning_rate_that_is_too_high_never_ends_in_a_flow_far_worse_than_at_the_start(
    lr, steps
):
    """Either the run recovers by itself, or it says so and puts healthy weights back."""
    torch.manual_seed(0)
    flow = models.realnvp_2d(depth=4, hidden=(32,))
    with contextlib.suppress(DivergedError):
        quick_fit(flow, MOONS, steps=steps, lr=lr)
    with torch.no_grad():
        z, log_det = flow(POINTS)
        loss = (z.square().sum(1) / 2 - log_det).mean() + math.log(2 * math.pi)
    assert loss < 2.2 + 10 * 2  # about 2 at the start; 10 nats per dimension of grace


# What is refused


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("steps", 0, "steps must be an integer of at least 1, got 0"),
        ("steps", 1e3, "steps must be an integer of at least 1, got 1000.0"),
        ("batch_size", 0, "batch_size must be an integer of at least 1, got 0"),
        ("batch_size", -5, "batch_size must be an integer of at least 1, got -5"),
        ("snapshots", -1, "snapshots must be an integer of at least 0, got -1"),
        ("lr", -1e-3, "lr must be positive and finite, got -0.001"),
        ("lr", math.nan, "lr must be positive and finite, got nan"),
        ("lr", "fast", "could not convert string to float: 'fast'"),
        ("betas", (0.9, 1.0), "Invalid beta parameter at index 1: 1.0"),
        ("seed", "0", "seed must be an integer"),
        ("seed", 0.5, "seed must be an integer"),
    ],
)
def test_senseless_settings_are_refused_and_leave_the_flow_alone(setting, value, message):
    flow, untouched = small_flow(), small_flow()
    with pytest.raises(ValueError, match=message):
        quick_fit(flow, **{setting: value})
    assert same_state(flow, untouched)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(10, 3), r"takes data of shape \(B, 2\), got \(10, 3\)"),
        (torch.zeros(2), r"takes data of shape \(B, 2\), got \(2,"),
        (torch.zeros(0, 2), "the batch is empty"),
        (torch.zeros(10, 2, dtype=torch.int64), "takes floating-point data, got torch.int64"),
        (torch.full((10, 2), math.nan), "10 of 10 data points hold NaN or infinity"),
        ([["a", "b"]], "must be a tensor or an array of numbers, got a list"),
        (
            TensorDataset(POINTS),
            r"must be a tensor or an array \(N, \*shape\), .* got a TensorDataset",
        ),
        (None, r"must be a tensor or an array \(N, \*shape\), .* got a NoneType"),
    ],
    ids=["width", "1d", "empty", "integers", "nan", "letters", "data set", "none"],
)
def test_bad_data_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        quick_fit(small_flow(), points)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_density_that_draws_what_is_not_finite_is_refused(value):
    class Broken:
        def sample(self, n, seed=None):
            return torch.full((n, 2), value)

    with pytest.raises(ValueError, match="data points hold NaN or infinity"):
        quick_fit(small_flow(), Broken())


@pytest.mark.parametrize(
    ("features", "points", "context", "message"),
    [
        (3, POINTS, None, r"takes a context of shape \(300, 3\), got none"),
        (3, POINTS, CONTEXT[:10], r"takes a context of shape \(300, 3\), got \(10, 3\)"),
        (3, POINTS, CONTEXT[:, :2], r"takes a context of shape \(300, 3\), got \(300, 2\)"),
        (3, POINTS, CONTEXT * math.nan, "300 of 300 rows of the context hold NaN or infinity"),
        (0, POINTS, CONTEXT, "takes no context"),
        (3, MOONS, CONTEXT, "a context goes with a data tensor"),
        (3, MOONS, None, "a context goes with a data tensor"),
    ],
    ids=[
        "missing",
        "rows",
        "width",
        "nan",
        "unexpected",
        "density and context",
        "density without",
    ],
)
def test_bad_context_is_refused(features, points, context, message):
    with pytest.raises(ValueError, match=message):
        quick_fit(small_flow(features), points, context=context)


def test_data_outside_the_domain_of_the_first_layer_is_explained():
    flow = Flow(Chain(Logit(), Diagonal(2)), shape=(2,))
    with pytest.raises(DivergedError, match=r"Logit takes \[0, 1\]"):
        quick_fit(flow, 5 + POINTS)


@pytest.mark.parametrize(
    ("points", "batch_size", "message"),
    [
        (POINTS, 1, "cannot be initialised from 1 rows: use a larger batch"),
        (POINTS.double() * 1e200, 64, "300 data points hold numbers too large to square"),
        (
            FIRST_CONSTANT,
            64,
            "constant in the batch given: remove it, or, if it does vary, use a larger",
        ),
    ],
    ids=["one row", "huge", "constant in the first batch"],
)
def test_the_cause_of_an_actnorm_that_cannot_start_is_named(points, batch_size, message):
    with pytest.raises(ValueError, match=message):
        quick_fit(small_flow().double(), points, batch_size=batch_size)


def test_a_constant_channel_is_refused_by_the_fit_and_leaves_no_trace():
    flow = small_flow()
    with pytest.raises(ValueError, match="channel 1 is constant"):
        quick_fit(flow, torch.stack([torch.randn(100), torch.zeros(100)], dim=1))
    with pytest.raises(ValueError, match="ActNorm is not initialised"):
        flow.log_prob(POINTS)


def test_a_history_that_ends_a_cell_does_not_print_every_loss():
    assert repr(History(loss=[1.0] * 5_000)) == "History(seconds=0.0, interrupted=False)"
