"""Flow Lab, site/flowlab.html, in Chromium from file://: its mathematics against flowlib, and what
a reader, with or without eyes and mouse, can do with it."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from flowlib import checkpoints, data, models, training

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "site" / "flowlab.html"
LIMIT = 250_000  # bytes


def open_page(browser, **options):
    """The page when it has drawn for the first time. Its policy forbids what Playwright's waiting
    needs, so it is bypassed, but not where the test is about requests."""
    options = {"bypass_csp": True, "viewport": {"width": 1280, "height": 900}} | options
    page = browser.new_context(**options).new_page()
    page.problems, page.requests = [], []
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(PAGE.as_uri())
    if options["bypass_csp"]:
        page.wait_for_function("state.frame !== null && state.gap !== null", timeout=60_000)
    return page


@pytest.fixture(scope="module")
def page(browser):
    page = open_page(browser)
    yield page
    assert page.problems == []
    page.context.close()


@pytest.fixture
def fresh(browser):
    page = open_page(browser)
    yield page
    assert page.problems == []
    page.context.close()


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def columns(x):
    return x.detach().double().T.tolist()


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


def in_page(page, flow, config, body, **arguments):
    """Evaluate JavaScript with `flow`, a Flow of that configuration and of flowlib's weights."""
    given = {"config": config, "weights": flat(flow.parameters()).tolist(), **arguments}
    script = f"""given => {{
      const flow = new Flow(given.config).load(given.weights), rows = v => Array.from(v)
      const points = p => p.map(v => Float64Array.from(v)); {body} }}"""
    return page.evaluate(script, given)


FLOWS = {"small": {"depth": 5, "hidden": (8, 12)}, "moons": {"depth": 8, "hidden": (64, 64)}}


@pytest.fixture(scope="module", params=FLOWS)
def flow(request):
    """A small flow with random weights, and the shipped moons, in float64."""
    if request.param == "moons":
        return checkpoints.load("moons").double()
    flow = models.realnvp_2d(**FLOWS["small"])
    training.fit(flow, data.TwoMoons(), steps=3, seed=0, progress=False)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng)
    return flow.double()


def config_of(flow):
    return {key: flow.built_by["arguments"][key] for key in ("depth", "hidden")}


def test_log_prob_and_latents_are_flowlibs(page, flow):
    x = data.TwoMoons().sample(300, seed=2).double()
    body = """const x = points(given.x), { y, logDet } = flow.forward(x)
      return [rows(flow.logProb(x)), rows(y[0]), rows(y[1]), rows(logDet)]"""
    theirs = tensor(in_page(page, flow, config_of(flow), body, x=columns(x)))
    z, log_det = flow(x)
    ours = torch.stack([flow.log_prob(x), *z.T, log_det])
    assert (theirs - ours).abs().max() < 1e-4


def test_the_inverse_and_its_jacobian_are_flowlibs(page, flow):
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(3)).double()
    body = """const { y, logDet } = flow.inverse(points(given.z))
      const steps = given.z[0].map((_, i) => flow.linearise([given.z[0][i], given.z[1][i]])[0])
      return { x: y.map(rows), logDet: rows(logDet), steps }"""
    theirs = in_page(page, flow, config_of(flow), body, z=columns(z))
    x, log_det = flow.inverse(z)
    steps = theirs["steps"]
    assert (tensor(theirs["x"]).T - x).abs().max() < 1e-4
    assert (tensor(theirs["logDet"]) - log_det).abs().max() < 1e-4
    assert (tensor([step["logDet"] for step in steps]) - log_det).abs().max() < 1e-4
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: flow.inverse(one[None])[0][0]))(z)
    difference = tensor([step["J"] for step in steps]) - jacobian
    assert (difference.abs() / jacobian.abs().clamp(min=1)).max() < 1e-4


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gradient_is_flowlibs(page, flow, sign):
    x = data.TwoMoons().sample(200, seed=4).double()
    body = """return { loss: flow.lossAndGradient(points(given.x), given.sign),
                       gradient: rows(flow.grad) }"""
    theirs = in_page(page, flow, config_of(flow), body, x=columns(x), sign=sign)
    z, log_det = flow(x)
    loss = (0.5 * z.square().sum(1) + np.log(2 * np.pi) - sign * log_det).mean()
    gradient = flat(torch.autograd.grad(loss, list(flow.parameters())))
    assert abs(theirs["loss"] - loss.item()) < 1e-4
    difference = (tensor(theirs["gradient"]) - gradient).abs()
    assert (difference / gradient.abs().clamp(min=1)).max() < 1e-4


def test_the_volume_preserving_flow_has_one_log_det_and_nices_gradient(page):
    """With s = 0 only ActNorm changes volume, and couplings add t: flowlib's additive couplings."""
    nice = models.nice_2d(depth=4, hidden=(8, 8))
    training.fit(nice, data.TwoMoons(), steps=3, seed=0, progress=False)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in nice.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng)
        nice.bijection[-1].log_scale.zero_()
    affine = models.realnvp_2d(depth=4, hidden=(8, 8)).double()
    nice = nice.double()
    with torch.no_grad():
        affine.bijection[0].load_state_dict(nice.bijection[0].state_dict())
        for mine, theirs in zip(affine.bijection[1:], nice.bijection[1:-1]):
            for a, b in zip(mine.network.parameters(), theirs.network.parameters()):
                a[: len(b)] = b
    x = data.TwoMoons().sample(50, seed=0).double()
    config = {"depth": 4, "hidden": (8, 8), "additive": True}
    body = """const x = points(given.x); flow.lossAndGradient(x)
      return [rows(flow.logProb(x)), rows(flow.forward(x).logDet), rows(flow.grad)]"""
    log_prob, log_det, gradient = in_page(page, affine, config, body, x=columns(x))
    assert (tensor(log_prob) - nice.log_prob(x)).abs().max() < 1e-4
    assert max(log_det) - min(log_det) < 1e-12
    ours = flat(torch.autograd.grad(-nice.log_prob(x).mean(), list(nice.bijection[0].parameters())))
    assert (tensor(gradient)[:4] - ours).abs().max() < 1e-4


def test_masks_that_never_alternate_only_rescale_x1(page, flow):
    x = data.TwoMoons().sample(50, seed=0).double()
    body = "return flow.forward(points(given.x)).y.map(rows)"
    z1, _ = in_page(page, flow, {**config_of(flow), "fixed": True}, body, x=columns(x))
    norm = flow.bijection[0]
    assert (tensor(z1) - (x[:, 0] - norm.shift[0]) * norm.log_scale[0].exp()).abs().max() < 1e-9


def test_the_shipped_moons_are_in_the_page_bit_for_bit(page):
    stored = tensor(page.evaluate("Array.from(PRETRAINED)"))
    assert torch.equal(stored, flat(checkpoints.load("moons").parameters()))


TRUTHS = {
    "moons": data.TwoMoons(0.05),
    "sinusoid": data.Sinusoid(0.1),
    "rings": data.Rings(0.08),
    "spirals": data.TwoSpirals(0.1),
    "checkerboard": data.Checkerboard(),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_densities_and_samples_are_those_of_flowlib(page, name):
    truth = TRUTHS[name]
    x = truth.sample(200, seed=5)
    script = """([name, x]) => { const truth = DENSITIES[name].make()
      const own = truth.sample(4000, new Random(3)), values = truth.logProb(own)
      return { values: Array.from(truth.logProb(x.map(v => Float64Array.from(v)))),
               own: own.map(v => Array.from(v)), mean: values.reduce((a, b) => a + b) / 4000 } }"""
    got = page.evaluate(script, [name, columns(x)])
    assert (tensor(got["values"]) - truth.log_prob(x)).abs().max() < 1e-3
    own = truth.log_prob(tensor(got["own"]).T)
    assert own.isfinite().all()
    assert abs(got["mean"] + truth.entropy) < 0.1
    assert abs(own.mean().item() - got["mean"]) < 1e-3


@pytest.mark.parametrize("painting", ["eight", "paint"])
def test_gaussians_and_paintings_are_mixtures_that_know_their_density(page, painting):
    script = """name => { const truth = DENSITIES[name].make(heart())
      const x = truth.sample(300, new Random(1))
      return { centres: truth.centres.map(v => Array.from(v)), noise: truth.noise,
               x: x.map(v => Array.from(v)), values: Array.from(truth.logProb(x)) } }"""
    got = page.evaluate(script, painting)
    x, centres = (tensor(got[key]).T for key in ("x", "centres"))
    squared = (x[:, None] - centres).square().sum(2) / got["noise"] ** 2
    volume = 2 * np.pi * got["noise"] ** 2 * len(centres)
    log_p = torch.logsumexp(-0.5 * squared, 1) - np.log(volume)
    assert (tensor(got["values"]) - log_p).abs().max() < 1e-8


def test_training_from_scratch_comes_within_a_twentieth_of_a_nat_of_the_moons(page):
    """What the Play button does, without the pictures: all its 4,000 steps."""
    script = """() => { const truth = DENSITIES.moons.make(), random = new Random(1)
      const flow = new Flow({ depth: state.depth, hidden: state.hidden })
      flow.initialise(random, truth.sample(4096, random))
      const training = new Training(flow, truth, { seed: 2 })
      const x = truth.sample(4000, new Random(12345)), truths = truth.logProb(x)
      while (training.step < training.steps) training.update()
      return flow.logProb(x).reduce((sum, q, i) => sum + (truths[i] - q) / 4000, 0) }"""
    assert -0.01 < page.evaluate(script) < 0.05


def test_the_committed_page_is_what_the_script_builds_and_is_small():
    build = runpy.run_path(str(ROOT / "site" / "build_flowlab.py"))["build"]
    html = PAGE.read_text(encoding="utf-8")
    assert html == build(), "site/ changed: python site/build_flowlab.py"
    assert len(html.encode()) <= LIMIT
    assert len(re.findall("</script>", html)) == len(re.findall("<script", html)) == 4
    assert "<!--" not in html
    assert (ROOT / "site" / "flowlab.png").stat().st_size <= 150_000


def test_the_page_asks_for_nothing_and_makes_no_error(browser):
    page = open_page(browser, bypass_csp=False)
    page.get_by_role("button", name="Play").click()
    page.get_by_text(re.compile(r"^Training\. Step")).wait_for()
    page.wait_for_timeout(1_500)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Load the trained moons").click()
    page.wait_for_timeout(500)
    other = [url for url in page.requests if not url.startswith(("blob:", "data:"))]
    assert other == [PAGE.as_uri()]
    assert page.problems == []
    page.context.close()


CONTROLS = "button, input, [tabindex], select, textarea, a"
NAMES = """node => { const label = node.labels?.[0]
  return node.getAttribute('aria-label') ?? label?.textContent ?? node.textContent }"""


def test_every_control_has_a_name_of_its_own_and_the_keyboard_reaches_it(fresh):
    fresh.get_by_role("radio", name="Paint").check()
    names = [node.evaluate(NAMES).split() for node in fresh.locator(CONTROLS).all()]
    assert all(names)
    assert len(set(map(tuple, names))) == len(names) >= 25
    reached, groups = set(), {"densities", "modes"}
    fresh.evaluate("document.activeElement.blur()")
    for _ in range(40):
        fresh.keyboard.press("Tab")
        focused = "[document.activeElement.id, document.activeElement.name ?? '']"
        identity, group = fresh.evaluate(focused)
        reached.add(identity or group)
        if identity:  # a ring around it shows where the focus is
            style = fresh.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none", identity
    visible = fresh.locator(f":is({CONTROLS}):visible").evaluate_all("all => all.map(n => n.id)")
    assert {identity for identity in visible if identity} | groups <= reached


def test_arrow_keys_move_the_latent_and_its_image(fresh):
    handle = fresh.get_by_role("slider", name=re.compile("^Latent z"))
    handle.focus()
    fresh.keyboard.press("ArrowRight")
    fresh.keyboard.press("Shift+ArrowUp")
    fresh.wait_for_function("Math.hypot(state.latent[0] - 1, state.latent[1] + 0.2) < 1e-9")
    fresh.wait_for_function(  # each key is drawn in a frame of its own
        "document.getElementById('latent-handle').ariaValueText.includes('z = (1.00, −0.20)')"
    )
    assert "log |det" in fresh.locator("#probe").inner_text()


def test_either_point_can_be_dragged_and_the_other_follows(fresh):
    box = fresh.locator("#data-plot").bounding_box()
    fresh.mouse.move(box["x"] + 100, box["y"] + 120)
    fresh.mouse.down()
    fresh.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=5)
    fresh.mouse.up()
    x = fresh.evaluate("flow.linearise(state.latent)[0].point")
    view = fresh.evaluate("view()")
    expected = [view["centre"][0] - view["half"] / 2, view["centre"][1]]
    assert np.allclose(x, expected, atol=0.05)


def test_a_single_step_is_one_step_and_play_trains_and_pauses(fresh):
    fresh.get_by_role("button", name="One step").click()
    fresh.wait_for_function("state.step === 1")
    fresh.get_by_role("button", name="Play").click()
    fresh.wait_for_function("state.step >= 20", timeout=60_000)
    fresh.get_by_role("button", name="Pause").click()
    fresh.wait_for_function("document.getElementById('status').textContent.startsWith('Step')")
    step = fresh.evaluate("state.step")
    fresh.wait_for_timeout(300)
    assert fresh.evaluate("state.step") == step == fresh.evaluate("state.losses.length")
    assert "gap to the truth" in fresh.locator("#status").inner_text()


def test_the_wrong_sign_breaks_a_training_in_the_words_of_its_sentence(fresh):
    """The loss falls below the truth's, latents are crushed, and the mass is far above 1."""
    fresh.evaluate("state.density = 'moons'")
    fresh.get_by_role("radio", name="Log-det of the wrong sign").check()
    assert "no longer integrates to 1" in fresh.locator("#look-for").inner_text()
    fresh.get_by_role("button", name="Play").click()
    fresh.wait_for_function("state.losses.at(-1) < state.floor - 1", timeout=120_000)
    fresh.wait_for_function("state.frame.mass > 2", timeout=30_000)
    fresh.get_by_role("button", name="Pause").click()
    spread = "Math.max(...state.frame.data.at(-1)[0].map(Math.abs))"
    assert fresh.evaluate(spread) < 1
    assert fresh.evaluate("state.gap") > 1


def test_what_was_painted_is_learned_even_without_a_mouse(fresh):
    fresh.get_by_role("radio", name="Paint").check()
    fresh.get_by_role("button", name="Clear the canvas").click()
    assert fresh.get_by_role("button", name="Play").is_disabled()
    fresh.get_by_role("slider", name=re.compile("^Brush")).focus()
    for key in ["ArrowUp", "Space", "Shift+ArrowRight", "Space"]:
        fresh.keyboard.press(key)
    assert fresh.evaluate("state.stamps") == [[0, 0.1], [0.5, 0.1]]
    fresh.get_by_role("button", name="One step").click()
    fresh.wait_for_function("state.step === 1")
    assert 0 < fresh.evaluate("state.gap") < 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_and_fingers_move_the_point(browser, scheme):
    size = {"width": 390, "height": 844}
    phone = open_page(browser, viewport=size, has_touch=True, color_scheme=scheme)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    small = """all => all.filter(n => Math.min(...['width', 'height'].map(
      side => (n.closest('label') ?? n).getBoundingClientRect()[side])) < 32).map(n => n.id)"""
    assert phone.locator(f":is({CONTROLS}):visible").evaluate_all(small) == []
    assert phone.get_by_role("button", name="Play").bounding_box()["y"] < 844
    before = phone.evaluate("state.latent")
    box = phone.locator("#data-plot").bounding_box()
    phone.touchscreen.tap(box["x"] + 60, box["y"] + 60)
    phone.wait_for_function("before => String(state.latent) !== String(before)", arg=before)
    assert phone.problems == []
    phone.context.close()


def test_reduced_motion_jumps_from_layer_to_layer(browser):
    calm = open_page(browser, reduced_motion="reduce")
    calm.get_by_role("slider", name=re.compile("^Layer")).fill("3")
    calm.wait_for_function("state.shown === 3", timeout=2_000)
    calm.context.close()
