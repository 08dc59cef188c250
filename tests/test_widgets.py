"""Explorers: the pictures show what the flow computes, and whatever a user has goes in."""

import base64
import copy
import io
import math

import numpy as np
import pytest
import torch
from helpers import assert_close, log_slope, randomise
from PIL import Image

from flowlib import data, models, plotting, training, widgets
from flowlib.widgets.explorer import Explorer, axes_row

pytestmark = pytest.mark.filterwarnings("error")
IMAGES = torch.randint(
    256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def plane():
    return randomise(models.realnvp_2d(depth=3, hidden=(8,)))


@pytest.fixture(scope="module")
def points():
    return data.TwoMoons(noise=0.1).sample(50, seed=0)


@pytest.fixture(scope="module")
def pixels():
    return randomise(models.realnvp_image((1, 8, 8), scales=2, width=4, blocks=1), size=0.05)


@pytest.fixture(scope="module")
def history():
    flow = models.realnvp_2d(depth=2, hidden=(8,))
    settings = {"steps": 40, "batch_size": 32, "snapshots": 5, "seed": 0, "progress": False}
    return training.fit(flow, data.TwoMoons(), **settings)


EXPLORERS = {
    "explore_layers": lambda plane, x, *_: widgets.explore_layers(plane, x),
    "explore_latent": lambda plane, *_: widgets.explore_latent(plane),
    "explore_training": lambda plane, x, pixels, images, history: widgets.explore_training(history),
    "latent_sliders": lambda plane, x, pixels, images, history: widgets.latent_sliders(
        pixels, widgets.principal_directions(pixels, images, k=2), images
    ),
    "interpolate": lambda plane, x, pixels, images, history: widgets.interpolate(
        pixels, images[0], images[1]
    ),
    "manifold": lambda plane, x, pixels, images, history: widgets.manifold(pixels, images),
    "explore_scales": lambda plane, x, pixels, images, history: widgets.explore_scales(
        pixels, images[0], images[1]
    ),
}


@pytest.fixture(scope="module", params=EXPLORERS)
def explorer(request, plane, points, pixels, history):
    """Every explorer once."""
    return EXPLORERS[request.param](plane, points, pixels, IMAGES, history)


def sliders(w):
    return [control for control in w.controls.values() if "step" in control.look]


def move_on_the_page(w, **values):
    """What the page sends when a hand has moved a control: the values of all."""
    w.set_state({"_values": {**w._values, **values}})


def pictures_sent(w):
    """A list that grows with every picture."""
    sent = []
    w.observe(sent.append, "_drawn")
    return sent


def picture(w):
    return np.asarray(Image.open(io.BytesIO(w.picture.value)))


# What holds for all of them


def test_each_control_at_both_ends_and_in_the_middle(explorer):
    for control in explorer.controls.values():
        values = list(getattr(control, "options", []))
        if control in sliders(explorer):
            middle = control.min + (control.max - control.min) // 2
            values = [control.min, control.max, type(control.value)(middle)]
        for value in values:
            control.value = value
            shown = [v for v in explorer.state.values() if torch.is_tensor(v)]
            assert shown and all(v.isfinite().all() for v in shown)
            assert explorer.readout.value and "Error" not in explorer.readout.value


def test_size_is_fixed_and_the_same_values_give_the_same_picture(explorer):
    image, size, control = explorer.picture, picture(explorer).shape, sliders(explorer)[0]
    assert image.width <= 760 and image.height <= 440
    seen, middle = [], type(control.value)((control.min + control.max) / 3)
    for value in [control.min, middle, control.min, middle]:
        control.value = value
        seen.append(bytes(explorer.picture.value))
    assert seen[0] != seen[1] and seen[:2] == seen[2:]
    assert explorer.picture is image
    assert picture(explorer).shape == size == (2 * image.height, 2 * image.width, 3)


def test_controls_have_names_of_their_own(explorer):
    names = [control.description for control in explorer.controls.values()]
    assert all(names) and len(set(names)) == len(names)
    assert [look["description"] for look in explorer._controls.values()] == names


def test_the_alt_text_says_what_is_shown_and_follows_the_line(explorer):
    control, alts = sliders(explorer)[0], set()
    for share in (0, 0.3):
        control.value = control.min + share * (control.max - control.min)
        alts.add(explorer.alt)
        assert len(explorer.alt) > 60 and explorer.alt.endswith(explorer.readout.value)
        assert "-" not in explorer.readout.value  # one kind of minus sign
    assert len(alts) == 2


def test_reset_on_the_page_draws_once_and_brings_the_first_picture_back(explorer):
    move_on_the_page(explorer, **explorer._start)
    first = explorer.picture.value
    for control in sliders(explorer):
        control.value = control.min if control.value == control.max else control.max
    sent = pictures_sent(explorer)
    move_on_the_page(explorer, **explorer._start)
    assert len(sent) == 1 and explorer.picture.value == first
    assert {name: control.value for name, control in explorer.controls.items()} == explorer._start


def test_a_cell_shows_the_live_explorer_and_a_picture_for_where_there_is_no_kernel(explorer):
    explorer.ask("Before you move it?", "So.")
    assert (explorer.question, explorer.answer) == ("Before you move it?", "So.")
    data, metadata = explorer._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.model_id
    assert base64.b64decode(data["image/png"]) == explorer.picture.value
    still = metadata["image/png"]
    assert still["alt"] == data["text/plain"] == explorer.alt
    assert still["width"] == explorer.picture.width
    assert still["caption"] == "**Before you move it?** Run this cell to move it."


def hostile(kind, plane, x, pixels, images, history):
    """What a user may have in place of plain float32 tensors and flows."""
    if kind == "arrays":
        return plane, x.numpy()[:, ::-1], pixels, images.numpy()[::-1], history
    if kind == "attached graphs":
        return plane, x.clone().requires_grad_() * 1, pixels, images, history
    if kind == "frozen flows":
        frozen = [copy.deepcopy(flow).requires_grad_(False) for flow in (plane, pixels)]
        return frozen[0], x, frozen[1], images, history
    history = copy.deepcopy(history)
    for snapshot in history.snapshots:
        snapshot.flow.double()
    return copy.deepcopy(plane).double(), x, copy.deepcopy(pixels).double(), images, history


OF_DATA = ["explore_layers", "latent_sliders", "interpolate", "manifold", "explore_scales"]
TAKE = {"arrays": OF_DATA, "attached graphs": ["explore_layers"], "float64": EXPLORERS}
TAKE |= {"frozen flows": [*OF_DATA, "explore_latent"]}  # snapshots of training always are


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in TAKE for name in TAKE[kind]])
def test_explorers_take_what_a_user_has(kind, name, plane, points, pixels, history):
    w = EXPLORERS[name](*hostile(kind, plane, points, pixels, IMAGES, history))
    for control in sliders(w):
        control.value = control.max
    assert not any(v.requires_grad for v in w.state.values() if torch.is_tensor(v))


@pytest.mark.parametrize("name", EXPLORERS)
def test_explorers_work_under_another_default_dtype(name, plane, points, pixels, history):
    torch.set_default_dtype(torch.float64)
    try:
        w = EXPLORERS[name](plane, points, pixels, IMAGES, history)
        for control in sliders(w):
            control.value = control.min
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_change_draws_once_and_no_change_not_at_all(plane, points):
    w = widgets.explore_layers(plane, points)
    sent = pictures_sent(w)
    w.controls["layer"].value = 1.0
    w.controls["layer"].value = 1.0
    assert len(sent) == 1


def test_an_event_from_the_browser_is_answered_with_the_newest_value_only_once(plane, points):
    """What JupyterLab sends after holding stale events back: one message with the newest value."""
    w = widgets.explore_layers(plane, points)
    sent = pictures_sent(w)
    move_on_the_page(w, layer=2.5)
    assert w.state["layer"] == w.controls["layer"].value == 2.5
    assert len(sent) == 1


def test_values_are_kept_within_bounds_wherever_they_come_from(plane, points, pixels):
    w = widgets.explore_layers(plane, points)
    w.controls["layer"].value = 99
    assert w.controls["layer"].value == w.state["layer"] == 4
    move_on_the_page(w, layer=-1)
    assert w.controls["layer"].value == w.state["layer"] == w._values["layer"] == 0
    scales = widgets.explore_scales(pixels, IMAGES[0])
    scales.controls["seed"].value = 3.0
    assert scales.controls["seed"].value == 3 and type(scales.controls["seed"].value) is int
    with pytest.raises(ValueError, match=r"scale 1, finest.* is one of \('keep'.*blue"):
        scales.controls["source 1"].value = "blue"


def test_an_error_while_drawing_is_shown_and_raised(plane):
    w = widgets.explore_latent(plane)

    def fail(**values):
        raise RuntimeError("a < b")

    w._update = fail
    with pytest.raises(RuntimeError, match="a < b"):
        w.controls["z1"].value = 1.0
    assert w.readout.value == "RuntimeError: a < b"


def test_a_prediction_is_still_there_when_the_cell_is_run_again(plane):
    first, again, other = (widgets.explore_latent(plane) for _ in range(3))
    first.ask("Where?").set_state({"prediction": "There."})
    assert again.ask("Where?").prediction == "There."
    assert other.ask("When?").prediction == ""


# Flows in the plane


def test_layers_show_the_intermediates_and_straight_lines_in_between(plane, points):
    w, states = widgets.explore_layers(plane, points), plane.intermediates(points)
    assert w.controls["layer"].max == len(plane.bijection) == 4
    for k, state in enumerate(states):
        w.controls["layer"].value = k
        assert_close(w.state["points"], state, 1e-6)
    w.controls["layer"].value = 1.25
    assert_close(w.state["points"], 0.75 * states[1] + 0.25 * states[2], 1e-6)
    assert "layer 2 of 4, AffineCoupling, 25% done" in w.readout.value
    w.controls["layer"].value = 0
    assert "the data" in w.readout.value


def test_the_mesh_goes_through_the_same_layers(plane, points):
    w = widgets.explore_layers(plane, points, box=((-2.0, 2.0), (-1.0, 1.0)))
    start = w.state["mesh"]
    assert start.view(-1, 2).amax(0).tolist() == [2, 1]
    w.controls["layer"].value = 4
    with torch.no_grad():
        assert_close(w.state["mesh"].view(-1, 2), plane(start.view(-1, 2))[0], 1e-5)


def test_layers_can_be_played_and_take_values_between_two_ticks(plane, points):
    w = widgets.explore_layers(plane, points)
    assert w._controls["layer"]["play"] == 0.2
    w.controls["layer"].value = 2.33
    assert w.state["layer"] == 2.33


def test_latent_shows_its_point_its_jacobian_and_log_det(plane):
    w = widgets.explore_latent(plane, radius=0.01)
    for z1, z2 in [(-3, -3), (0, 1), (3, 3)]:
        w.controls["z1"].value, w.controls["z2"].value = z1, z2
        z = torch.tensor([[z1, z2]], dtype=torch.float32)
        with torch.no_grad():
            x, log_det = plane.inverse(z)
        assert_close(w.state["x"], x[0], 1e-6)
        assert w.state["log_det"] == pytest.approx(log_det.item(), abs=1e-6)
        slope = torch.linalg.slogdet(w.state["jacobian"]).logabsdet.item()
        assert w.state["log_det"] == pytest.approx(slope, abs=1e-4)
        assert slope == pytest.approx(log_slope(lambda z: plane.inverse(z)[0], z).item(), abs=1e-4)


def test_the_ellipse_is_what_becomes_of_a_small_circle(plane):
    small, large = (widgets.explore_latent(plane, radius=radius).state for radius in (0.01, 1.0))
    distance = [(state["ellipse"] - state["curve"]).abs().max().item() for state in (small, large)]
    assert distance[0] < 1e-3 < distance[1]


def test_a_small_ellipse_is_magnified_until_it_fills_its_panel(plane):
    w = widgets.explore_latent(plane, box=((-4.0, 4.0), (-4.0, 4.0)), radius=0.1)
    window = w._canvas.figure.axes[2]
    for z1 in (-3.0, 0.0):
        w.controls["z1"].value = z1
        shape = torch.cat([w.state["ellipse"], w.state["curve"]])
        size = (shape - w.state["x"]).abs().max().item()
        shown = (window.get_xlim()[1] - window.get_xlim()[0]) / 2
        assert shown == pytest.approx(1.1 * size, rel=1e-3)
        assert window.get_title() == f"magnified {4 / shown:.1f} times"


def test_training_shows_every_snapshot(history):
    w = widgets.explore_training(history, n=20, seed=3)
    assert w.state["step"] == 40
    assert w.state["loss"] == pytest.approx(sum(history.loss[-25:]) / 25)
    for k, snapshot in enumerate(history.snapshots):
        w.controls["snapshot"].value = k
        assert w.state["step"] == snapshot.step
        assert torch.equal(w.state["samples"], snapshot.flow.sample(20, seed=3))
        assert w.state["density"].shape == (80, 80)
    w.controls["snapshot"].value = 0
    assert w.state["loss"] is None


# Flows of images


def test_principal_directions_are_those_of_a_gaussian():
    # the identity but for dequantisation and logit
    flow = models.realnvp_mlp((1, 2, 2), depth=1, hidden=(4,))
    images = torch.randint(256, (300, 1, 2, 2), dtype=torch.uint8)
    images[:, 0, 0, 0] = 128
    directions = widgets.principal_directions(flow, images, k=3)
    z = flow.encode(images)
    covariance = (z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1)
    assert_close(directions.T @ directions, covariance, 1e-4)
    assert (directions.abs().max(1).values == directions.max(1).values).all()


def test_directions_are_added_to_the_latents_of_images_and_decoded(pixels):
    directions = {"ink": torch.randn(64), "slant": torch.randn(64).double().numpy()}
    w = widgets.latent_sliders(pixels, directions, IMAGES)
    assert list(w.controls) == ["ink", "slant", "temperature"]
    assert torch.equal(w.state["images"], IMAGES)
    for name, value in [("ink", 2.0), ("slant", -1.0), ("temperature", 0.5)]:
        w.controls[name].value = value
    slant = torch.from_numpy(directions["slant"]).float()
    z = 0.5 * pixels.encode(IMAGES) + 2 * directions["ink"] - slant
    assert_close(w.state["z"], z, 1e-5)
    with torch.no_grad():
        assert torch.equal(w.state["images"], pixels.inverse(w.state["z"])[0])


def test_directions_without_names_are_numbered(pixels):
    w = widgets.latent_sliders(pixels, torch.randn(2, 64), IMAGES)
    assert list(w.controls) == ["direction 1", "direction 2", "temperature"]


def test_interpolation_begins_and_ends_with_the_images(pixels):
    w, latents = widgets.interpolate(pixels, *IMAGES[:2]), pixels.encode(IMAGES[:2])
    for t, end in [(0, 0), (1, 1)]:
        w.controls["t"].value = t
        assert_close(w.state["z"], latents[[end, end]], 1e-4)
        assert (w.state["images"].int() - IMAGES[end].int()).abs().max() <= 1
    w.controls["t"].value = 0.5
    assert_close(w.state["z"][0], latents.mean(0), 1e-5)
    assert w.state["z"][1].norm() == pytest.approx(latents.norm(dim=1).mean().item(), rel=0.05)


def test_an_image_and_itself_have_nothing_between_them(pixels):
    w = widgets.interpolate(pixels, IMAGES[0], IMAGES[0])
    assert torch.equal(w.state["images"], IMAGES[[0, 0]])


def test_images_are_drawn_where_matplotlib_would_draw_them_with_every_pixel_a_block(pixels):
    figure, (ax, _) = axes_row(320, 130, 2)
    drawn = plotting.image_grid(ax, IMAGES, columns=2)
    w = Explorer({}, figure, [drawn], lambda: ({}, ""), "Four images.")
    by_matplotlib, shown = io.BytesIO(), picture(w).astype(int)
    drawn.set_animated(False)
    figure.savefig(by_matplotlib, dpi=200)
    away = np.abs(shown - np.asarray(Image.open(by_matplotlib).convert("RGB"))).max(2)
    height, width, _ = drawn.get_array().shape
    corners = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    x, y = drawn.axes.transData.transform(corners).astype(int).T
    centres = shown[len(shown) - 1 - y, x].reshape(height, width, 3)
    assert (centres == drawn.get_array()).all()
    assert away.astype(bool).mean() < 0.1  # at the edges of blocks


@pytest.mark.parametrize(
    ("shape", "look", "zoom"),
    [
        ((6, 5, 4), {}, None),
        ((6, 5, 3), {"origin": "lower"}, None),
        ((6, 5, 3), {"alpha": 0.5}, None),
        ((6, 5, 3), {}, (0.5, 2.5)),
        ((6, 5), {}, None),
    ],
)
def test_all_other_images_are_drawn_by_matplotlib(shape, look, zoom):
    figure, (ax,) = axes_row(160, 130, 1)
    drawn = ax.imshow(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8), **look)
    if zoom:
        ax.set_xlim(zoom)
    w = Explorer({}, figure, [drawn], lambda: ({}, ""), "An image.")
    drawn.set_animated(False)
    figure.savefig(by_matplotlib := io.BytesIO(), dpi=200)
    expected = np.asarray(Image.open(by_matplotlib).convert("RGB")).astype(int)
    frame = np.zeros(expected.shape[:2], bool)  # of the axes, which lies above an image as saved
    for away in (4, -4):
        (x0, y0), (x1, y1) = ax.bbox.padded(away).get_points().round().astype(int)
        frame[len(frame) - y1 : len(frame) - y0, x0:x1] = away > 0
    assert np.abs(expected - picture(w))[~frame].max() <= 1


def test_manifold_is_equation_19(pixels):
    w, (z1, z2, z3, z4) = widgets.manifold(pixels, IMAGES), pixels.encode(IMAGES)
    for corner, (phi, phi_prime) in enumerate([(0, 0), (0, 90), (90, 0), (90, 90)]):
        w.controls["phi"].value, w.controls["phi_prime"].value = phi, phi_prime
        assert (w.state["image"].int() - IMAGES[corner].int()).abs().max() <= 1
    w.controls["phi"].value, w.controls["phi_prime"].value = 30, 200
    (c, s), (c_prime, s_prime) = ((math.cos(a), math.sin(a)) for a in map(math.radians, (30, 200)))
    z = c * (c_prime * z1 + s_prime * z2) + s * (c_prime * z3 + s_prime * z4)
    assert_close(w.state["z"], z, 1e-5)
    assert w.state["weights"].square().sum() == pytest.approx(1)


def parts_of(pixels, z):
    return pixels.bijection[-1].split_latent(z[None])


def test_scales_are_kept_swapped_and_drawn(pixels):
    w = widgets.explore_scales(pixels, *IMAGES[:2])
    own, others = (parts_of(pixels, z) for z in pixels.encode(IMAGES[:2]))
    drawn = parts_of(pixels, torch.randn(64, generator=torch.Generator().manual_seed(5)))
    w.controls["seed"].value = 5
    for source, expected in [("keep", own), ("of the other", others), ("draw anew", drawn)]:
        w.controls["source 1"].value = source
        w.controls["temperature 1"].value = 0.5
        shown = parts_of(pixels, w.state["z"])
        assert_close(shown[0], 0.5 * expected[0], 1e-6)
        assert_close(shown[1], own[1], 1e-6)


@pytest.mark.parametrize(("source", "image"), [("keep", 0), ("of the other", 1)])
def test_all_scales_of_one_image_give_that_image(pixels, source, image):
    w = widgets.explore_scales(pixels, *IMAGES[:2])
    for k in (1, 2):
        w.controls[f"source {k}"].value = source
    assert torch.equal(w.state["image"], IMAGES[image])


def test_without_another_image_there_is_nothing_to_take_from_it(pixels):
    w = widgets.explore_scales(pixels, IMAGES[0])
    assert w.controls["source 2"].options == ("keep", "draw anew")


# Errors, in the cell

REFUSALS = {
    "explore_layers takes a Flow, got str": lambda f, g, h: widgets.explore_layers("moons", []),
    r"points in the plane, shape \(2,\), got one of shape \(1, 8, 8\)": (
        lambda f, g, h: widgets.explore_layers(g, IMAGES)
    ),
    r"data of shape \(B, 2\), got \(3, 3\)": (
        lambda f, g, h: widgets.explore_layers(f, torch.zeros(3, 3))
    ),
    "the batch is empty": lambda f, g, h: widgets.explore_layers(f, torch.zeros(0, 2)),
    "3 of 3 data points hold NaN": (
        lambda f, g, h: widgets.explore_layers(f, torch.full((3, 2), math.nan))
    ),
    "explore_latent is for flows of points in the plane": (
        lambda f, g, h: widgets.explore_latent(g)
    ),
    r"training.fit\(..., snapshots=12\)": lambda f, g, h: widgets.explore_training(f),
    "n must be an integer of at least 1": lambda f, g, h: widgets.explore_training(h, n=0),
    r"flows of uint8 images \(C, H, W\), got one of shape \(2,\)": (
        lambda f, g, h: widgets.latent_sliders(f, torch.ones(1, 2), IMAGES)
    ),
    r"finite vectors of 64 latents, got \(63,\) for 'direction 1'": (
        lambda f, g, h: widgets.latent_sliders(g, torch.ones(1, 63), IMAGES)
    ),
    r"finite vectors of 64 latents, got \(64,\) for 'ink'": (
        lambda f, g, h: widgets.latent_sliders(g, {"ink": torch.full((64,), math.inf)}, IMAGES)
    ),
    "ink must be a tensor or an array of numbers, got a str": (
        lambda f, g, h: widgets.latent_sliders(g, {"ink": "blue"}, IMAGES)
    ),
    "may not be called 'temperature'": (
        lambda f, g, h: widgets.latent_sliders(g, {"temperature": torch.ones(64)}, IMAGES)
    ),
    "takes uint8 images, got torch.float32": (
        lambda f, g, h: widgets.latent_sliders(g, torch.ones(1, 64), IMAGES.float())
    ),
    "at least 2 images, got 1": lambda f, g, h: widgets.principal_directions(g, IMAGES[:1]),
    r"data of shape \(B, 1, 8, 8\), got \(1, 4, 1, 8, 8\)": (
        lambda f, g, h: widgets.interpolate(g, IMAGES[0], IMAGES)
    ),
    "must be a tensor or an array of numbers, got a str": (
        lambda f, g, h: widgets.interpolate(g, IMAGES[0], "7")
    ),
    "manifold takes four images, got 3": lambda f, g, h: widgets.manifold(g, IMAGES[:3]),
    "explore_scales is for flows of uint8 images": (
        lambda f, g, h: widgets.explore_scales(f, *IMAGES[:2])
    ),
    "a flow with a MultiScale layer": (
        lambda f, g, h: widgets.explore_scales(
            models.realnvp_mlp((1, 8, 8), hidden=(4,)), IMAGES[0]
        )
    ),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_bad_arguments_are_refused(plane, pixels, history, text):
    with pytest.raises(ValueError, match=text):
        REFUSALS[text](plane, pixels, history)


def test_images_of_few_bits_are_as_bright_as_others():
    for explorer in ("latent_sliders", "interpolate", "manifold", "explore_scales"):
        brightness = []
        spread = ((IMAGES // 8).long() * 255 // 31).to(torch.uint8)
        for images, bits in ((IMAGES // 8, 5), (spread, 8)):
            flow = models.realnvp_image((1, 8, 8), scales=2, width=4, blocks=1, bits=bits).eval()
            w = EXPLORERS[explorer](None, None, flow, images, None)
            brightness.append(picture(w).mean())
        assert abs(brightness[0] - brightness[1]) < 3, explorer
