import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import randomise

from flowlib import data, models, plotting
from flowlib.training import History

pytestmark = pytest.mark.filterwarnings("error")
plt.switch_backend("agg")
BOX = ((-1.0, 3.0), (0.0, 2.0))


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


@pytest.fixture
def flow():
    return randomise(models.realnvp_2d(depth=3, hidden=(8,)))


def draw(figure):
    """Render, so that what matplotlib defers until then is seen to work as well."""
    figure.canvas.draw()


def test_style_is_quiet_and_uses_the_colours_of_the_series():
    with plt.style.context({}):
        plotting.use_style()
        assert not plt.rcParams["axes.spines.top"]
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0].lstrip(
            "#"
        ) == plotting.BLUE.lstrip("#")


def test_a_grid_holds_the_mass_of_a_density():
    moons = data.TwoMoons(noise=0.2)
    p, area = plotting.evaluate_on_grid(moons.log_prob, moons.box, resolution=80)
    assert p.shape == (80, 80)
    assert p.sum() * area == pytest.approx(1, abs=1e-3)


def test_rows_of_a_grid_run_along_y_and_columns_along_x():
    p, _ = plotting.evaluate_on_grid(lambda x: x[:, 0] + 10 * x[:, 1], BOX, resolution=2)
    assert p.log().tolist() == [
        pytest.approx([5, 7]),
        pytest.approx([15, 17]),
    ]  # midpoints x = 0, 2 and y = 0.5, 1.5


def test_density_is_drawn_the_right_way_up_over_its_box(ax):
    image = plotting.density(ax, lambda x: x[:, 1], BOX, resolution=8)
    values = np.asarray(image.get_array())
    assert values[-1, 0] > values[0, 0]
    assert image.origin == "lower"
    assert image.get_extent() == [-1.0, 3.0, 0.0, 2.0]
    assert (ax.get_xlim(), ax.get_ylim()) == BOX
    draw(ax.figure)


@pytest.mark.parametrize("color", [plotting.ORANGE, torch.arange(6.0)], ids=["one", "per point"])
def test_points_are_drawn_where_they_are(ax, color):
    x = torch.rand(6, 2)
    plotting.points(ax, x, BOX, color)
    assert np.allclose(ax.collections[0].get_offsets(), x)
    assert (ax.get_xlim(), ax.get_ylim()) == BOX
    draw(ax.figure)


def test_mesh_is_straight_lines_over_its_box():
    lines = plotting.mesh(BOX, lines=5, per_line=7)
    assert lines.shape == (10, 7, 2)
    assert (lines[:5, :, 0] == lines[:5, :1, 0]).all()
    assert (lines[5:, :, 1] == lines[5:, :1, 1]).all()
    assert lines.view(-1, 2).amin(0).tolist() == [-1, 0]
    assert lines.view(-1, 2).amax(0).tolist() == [3, 2]


def test_four_panels_show_data_latents_and_samples(flow):
    x = torch.randn(30, 2)
    figure = plotting.four_panels(flow, x, BOX, seed=0)
    shown = [
        torch.from_numpy(np.asarray(ax.collections[0].get_offsets())).float() for ax in figure.axes
    ]
    with torch.no_grad():
        assert torch.allclose(shown[0], x)
        assert torch.allclose(shown[1], flow(x)[0])
        assert torch.allclose(shown[3], flow.inverse(shown[2])[0], atol=1e-5)
        assert torch.allclose(shown[3], flow.sample(30, seed=0), atol=1e-5)
    draw(figure)
    plt.close(figure)


def hostile(kind, flow):
    """A flow and points as users have them: (flow, x)."""
    x = torch.randn(20, 2)
    if kind == "float64":
        return flow.double(), x
    if kind == "attached":
        return flow, torch.nn.Linear(2, 2)(x)
    return flow.requires_grad_(False), x.numpy()[::-1]


@pytest.mark.parametrize("kind", ["float64", "attached", "frozen, arrays"])
def test_figures_take_what_a_user_has(ax, flow, kind):
    flow, x = hostile(kind, flow)
    plotting.density(ax, flow.log_prob, BOX, resolution=8)
    plotting.points(ax, x, BOX, color=x[:, 0])
    plotting.draw_mesh(ax, flow.inverse(flow.draw_latents(6))[0].view(2, 3, 2))
    figures = [plotting.four_panels(flow, x, BOX), plotting.layer_strip(flow, x, BOX), ax.figure]
    for figure in figures:
        draw(figure)
        plt.close(figure)


def test_grids_follow_a_flow_whatever_the_default_dtype(flow):
    torch.set_default_dtype(torch.float64)
    try:
        assert plotting.evaluate_on_grid(flow.log_prob, BOX, 4)[0].dtype == torch.float32
        p, _ = plotting.evaluate_on_grid(flow.double().log_prob, BOX, 4)
        assert p.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_tiles_leave_a_pixel_between_images(ax):
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    picture = plotting.tiles(images.numpy()[::-1], columns=2)
    assert picture.shape == (19, 19, 3)
    assert np.array_equal(picture[1:9, 1:9, 0], images[3, 0])
    drawn = plotting.image_grid(ax, images, columns=2).get_array()
    assert np.array_equal(drawn[1:9, 1:9, 0], images[0, 0])


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_pictures_of_few_bits_go_from_black_to_white(ax, bits):
    levels = torch.arange(2**bits, dtype=torch.uint8).view(-1, 1, 1, 1)
    shown = plotting.image_grid(ax, levels, columns=2**bits, bits=bits).get_array()[1, 1::2, 0]
    assert np.allclose(shown, np.linspace(0, 255, 2**bits), atol=1)
    assert shown[0] == 0 and shown[-1] == 255
    if bits < 8:
        text = f"images of {bits} bits are 0 ... {2**bits - 1}, got {2**bits}"
        with pytest.raises(ValueError, match=text):
            plotting.tiles(levels + 1, bits=bits)


@pytest.mark.parametrize("columns", [2, 5])
def test_layer_strip_shows_the_data_and_every_layer(flow, columns):
    x = torch.randn(20, 2)
    figure = plotting.layer_strip(flow, x, BOX, columns=columns)
    shown = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in shown] == ["data", *(f"after layer {k}" for k in range(1, 5))]
    for ax, state in zip(shown, flow.intermediates(x)):
        assert np.allclose(ax.collections[-1].get_offsets(), state)
    draw(figure)
    plt.close(figure)


@pytest.mark.parametrize("steps", [1, 30, 400])
def test_loss_curve_shows_every_loss_its_running_mean_and_the_floor(ax, steps):
    history = History(loss=[float(step) for step in range(1, steps + 1)])
    plotting.loss_curve(ax, history, floor=0.25)
    every_loss, running_mean, floor = ax.lines
    assert every_loss.get_ydata().tolist() == history.loss
    assert np.allclose(
        running_mean.get_ydata(), running_mean.get_xdata()
    )  # the centred mean of a line is the line
    assert list(floor.get_ydata()) == [0.25, 0.25]
    assert "entropy of the data, 0.250" in [text.get_text() for text in ax.get_legend().get_texts()]
    draw(ax.figure)


def test_square_is_the_smallest_around_the_same_centre():
    assert plotting.square(BOX) == ((-1.0, 3.0), (-1.0, 3.0))


def test_show_displays_the_figure_at_twice_its_size_with_its_alt_text(monkeypatch):
    shown = []
    monkeypatch.setenv("FLOWLIB_FAST", "0")
    monkeypatch.setattr("IPython.display.display", shown.append)
    fig, _ = plt.subplots(figsize=(2, 1), dpi=100)
    plotting.show("A line\n   that rises.")
    (data, metadata) = shown[0]._repr_mimebundle_()
    width, height = metadata["image/png"]["width"], metadata["image/png"]["height"]
    assert metadata["image/png"]["alt"] == "A line that rises."
    assert 150 <= width <= 250 and 75 <= height <= 130  # cropped to what is drawn
    assert data["image/png"].startswith("iVBOR") and not plt.fignum_exists(fig.number)
