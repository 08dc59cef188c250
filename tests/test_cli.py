"""The command line, in this process, on scikit-learn's digits: nothing is downloaded."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from flowlib import checkpoints, data, models, plotting, training
from flowlib.__main__ import main
from flowlib.recipes import RECIPES, score

pytestmark = pytest.mark.filterwarnings('ignore:"(digits|photos|faces)" stands in')
OF_IMAGES = [name for name, recipe in RECIPES.items() if isinstance(recipe.data, str)]
OF_POINTS = [name for name in RECIPES if name not in OF_IMAGES]
QUICK = ["--steps", "2", "--batch-size", "16"]


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """A current folder and a data folder in which nothing lies, and no downloads."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("elsewhere")
        patch.chdir(place)
        patch.setenv("FLOWLIB_DATA", str(place / "data"))
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setenv("FLOWLIB_FAST", "1")
        yield place


@pytest.fixture(scope="module")
def digits(elsewhere):
    """A run of the plain recipe, on stand-in digits."""
    assert main(["train", "mnist_plain", "--standin", *QUICK, "--run", "digits_run"]) == 0
    return "digits_run"


@pytest.fixture(scope="module")
def moons(elsewhere):
    assert main(["train", "moons", *QUICK]) == 0
    return "runs/moons"


def complaint(capsys, *arguments):
    """The one line that a command prints before it ends with status 1."""
    assert main([str(argument) for argument in arguments]) == 1
    printed, complained = capsys.readouterr()
    assert printed == ""
    lines = [line for line in complained.splitlines() if line.startswith("flowlib: ")]
    assert len(lines) == 1
    assert "Traceback" not in complained
    return lines[0]


# Help


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["sample"]], ids=" ".join)
def test_help_of_every_command_ends_well_and_names_what_it_takes(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    expected = {
        "": ["train", "evaluate", "sample"],
        "train": ["--resume", "--seed", "--run", *RECIPES],
    }
    printed = capsys.readouterr().out
    assert all(
        word in printed
        for word in expected.get(
            "".join(command), ["flow", "--seed" if command == ["sample"] else "--draws"]
        )
    )


def test_python_m_flowlib_runs_it_and_exits_with_its_status():
    done = subprocess.run(
        [sys.executable, "-m", "flowlib", "sample", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("flowlib: no checkpoint at 'nothing'; shipped with flowlib: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "moons", "--lr", "fast"],
        ["sample", "moons", "-n", "x"],
    ],
    ids=" ".join,
)
def test_what_it_does_not_understand_ends_with_status_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


# Training


@pytest.mark.parametrize("recipe", ["sinusoid", "mnist_mlp", "cifar10", "celeba_32"])
def test_a_recipe_of_every_kind_is_trained_and_scored(recipe, tmp_path, capsys, monkeypatch):
    if RECIPES[recipe].model == "realnvp_image":  # test_recipes.py looks at the whole structure
        narrow = {**RECIPES[recipe].arguments, "width": 4, "blocks": 1, "scales": 1}
        monkeypatch.setitem(RECIPES, recipe, replace(RECIPES[recipe], arguments=narrow))
    few = ["--limit", "40"] if recipe in OF_IMAGES else []
    assert main(["train", recipe, "--standin", *few, *QUICK, "--run", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    metric = "bits_per_dim" if recipe in OF_IMAGES else "kl_nats"
    error = f"{metric.removesuffix('_nats')}_standard_error"
    assert {"data", metric, error, "hardware"} <= results.keys()
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {name: value for name, value in results.items() if name != "hardware"} == {
        name: type(results[name])(printed[name]) for name in printed
    }
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 2


def test_few_bits_reach_from_data_to_samples_and_scores(tmp_path, capsys, monkeypatch):
    """A recipe says how many; nobody has to shift a pixel."""
    bits = 3
    small = {"width": 4, "blocks": 1, "scales": 1, "dequant_couplings": 0, "bits": bits}
    arguments = {**RECIPES["celeba_32_5bit"].arguments, **small}
    monkeypatch.setitem(RECIPES, "few", replace(RECIPES["celeba_32_5bit"], arguments=arguments))
    run = tmp_path / "run"
    assert main(["train", "few", "--standin", "--limit", "40", *QUICK, "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--standin"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["bits"] == str(bits)
    assert main(["sample", str(run), "-o", str(tmp_path / "x.png")]) == 0
    drawn = checkpoints.load(run).sample(36, seed=0)
    assert drawn.max() < 2**bits
    for path in (tmp_path / "x.png", run / "samples" / "0000002.png"):
        pixels = np.asarray(Image.open(path))
        assert np.array_equal(pixels, plotting.tiles(drawn, 6, bits))
        assert pixels.max() == int(drawn.max()) * 255 // (2**bits - 1) > 200


def test_a_run_lies_under_the_name_of_its_recipe_unless_told_otherwise(moons, elsewhere):
    names = {path.name for path in (elsewhere / moons).iterdir()} - {".lock"}
    weights = {"last.json", "last.safetensors", "state.safetensors"}
    assert names == {"config.json", "metrics.jsonl", "results.json"} | weights


def test_what_is_asked_for_takes_the_place_of_what_the_recipe_says(tmp_path):
    main(
        [
            "train",
            "mnist_plain",
            "--standin",
            "--epochs",
            "1",
            "--batch-size",
            "500",
            "--lr",
            "0.01",
            "--seed",
            "7",
            "--run",
            str(tmp_path / "run"),
        ]
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: config[name] for name in ("data", "steps", "batch_size", "lr", "seed")} == {
        **{"data": "digits", "steps": 3, "batch_size": 500, "lr": 0.01, "seed": 7}
    }
    assert config["schedule"] == RECIPES["mnist_plain"].training["schedule"]


def test_the_same_seed_trains_the_same_flow(tmp_path):
    for run, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        main(["train", "moons", *QUICK, "--seed", seed, "--run", str(tmp_path / run)])
    first, again, other = ((tmp_path / run / "last.safetensors").read_bytes() for run in "abc")
    assert first == again != other


def test_resume_goes_on_with_a_run_and_starts_one_that_is_not_there(tmp_path):
    command = ["train", "moons", *QUICK, "--run", str(tmp_path / "run"), "--resume"]
    assert main(command) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


# Evaluating


def test_evaluating_a_run_gives_the_figures_that_training_ended_with(moons, elsewhere, capsys):
    before = (elsewhere / moons / "results.json").read_text()
    assert main(["evaluate", moons]) == 0
    assert (elsewhere / moons / "results.json").read_text() == before
    assert "kl_nats" in capsys.readouterr().out


def test_evaluating_images_takes_draws_and_a_limit(digits, elsewhere, capsys):
    assert main(["evaluate", digits, "--draws", "2", "--limit", "20"]) == 0
    results = json.loads((elsewhere / digits / "results.json").read_text())
    assert (results["data"], results["draws"], results["test_images"]) == ("digits", 2, 20)
    expected = score(checkpoints.load(digits), data.load("digits"), draws=2, limit=20)
    assert results["bits_per_dim"] == expected["bits_per_dim"]


def test_a_file_of_a_run_is_evaluated_on_the_data_of_its_run(moons, capsys):
    assert main(["evaluate", f"{moons}/last.safetensors"]) == 0
    assert "TwoMoons(noise=0.05)" in capsys.readouterr().out


def test_a_shipped_flow_is_evaluated_by_its_name_and_leaves_no_file(elsewhere, capsys):
    before = sorted(elsewhere.rglob("*"))
    assert main(["evaluate", "moons"]) == 0
    assert "TwoMoons(noise=0.05)" in capsys.readouterr().out
    assert sorted(elsewhere.rglob("*")) == before


# Samples


def test_samples_of_points_are_a_csv(moons, elsewhere):
    assert main(["sample", moons, "-n", "5", "--seed", "3", "-o", "points.csv"]) == 0
    drawn = np.loadtxt(elsewhere / "points.csv", delimiter=",")
    assert drawn.shape == (5, 2)
    assert np.allclose(drawn, checkpoints.load(moons).sample(5, seed=3).numpy(), rtol=1e-5)


def test_samples_of_images_are_a_picture_and_the_same_seed_gives_the_same_bytes(digits, elsewhere):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main(["sample", digits, "-n", "7", "--seed", seed, "-o", f"{name}.png"]) == 0
    first, again, other = ((elsewhere / f"{name}.png").read_bytes() for name in "abc")
    assert first == again != other
    with Image.open(elsewhere / "a.png") as picture:
        assert picture.size == (6 * 29 + 1, 2 * 29 + 1)


@pytest.mark.parametrize(("run", "file"), [("moons", "samples.csv"), ("digits", "samples.png")])
def test_samples_have_a_name_if_none_is_given(run, file, request, tmp_path, monkeypatch, elsewhere):
    folder = elsewhere / request.getfixturevalue(run)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(folder), "-n", "2"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_temperature_zero_gives_one_point_again_and_again(moons, elsewhere):
    main(["sample", moons, "-n", "4", "--temperature", "0", "-o", "cold.csv"])
    assert len(np.unique(np.loadtxt(elsewhere / "cold.csv", delimiter=","), axis=0)) == 1


# What goes wrong


def test_an_unknown_recipe_is_answered_with_those_there_are(capsys):
    assert (
        complaint(capsys, "train", "cats")
        == f"flowlib: unknown recipe 'cats'; there are {', '.join(RECIPES)}"
    )


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_an_unknown_flow_is_answered_with_those_that_are_shipped(command, capsys):
    assert complaint(capsys, command, "cats").startswith(
        "flowlib: no checkpoint at 'cats'; shipped with flowlib: "
    )


def test_a_run_that_is_there_is_not_overwritten(moons, capsys):
    assert "runs/moons already holds a run: resume it, or choose another folder" in complaint(
        capsys, "train", "moons", *QUICK
    )


def test_going_on_with_another_seed_is_refused(moons, capsys):
    line = complaint(capsys, "train", "moons", *QUICK, "--resume", "--seed", "1")
    assert "runs/moons was started with seed=0, and is to go on with 1" in line


@pytest.mark.parametrize("recipe", [name for name in OF_IMAGES if RECIPES[name].data != "faces"])
def test_data_that_cannot_be_had_is_explained(recipe, tmp_path, capsys):
    line = complaint(capsys, "train", recipe, *QUICK, "--run", tmp_path / "run")
    assert ("there are no images in" if "celeba" in recipe else "downloading failed") in line
    assert "standin=True" in line
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_name_its_data_cannot_be_evaluated(tmp_path, capsys):
    checkpoints.save(models.nice_2d(), tmp_path / "mine.safetensors")
    line = complaint(capsys, "evaluate", tmp_path / "mine.safetensors")
    assert line.endswith("mine.safetensors does not say which data it was trained on")


def test_a_run_on_any_density_is_evaluated_on_that_density(tmp_path, capsys):
    for density in (data.TwoMoons(noise=0.2), data.Checkerboard()):
        run, settings = tmp_path / repr(density), {"steps": 1, "batch_size": 8, "progress": False}
        training.fit(models.nice_2d(), density, seed=0, run=run, **settings)
        assert main(["evaluate", str(run)]) == 0
        assert repr(density) in capsys.readouterr().out


def test_a_run_on_data_that_nobody_can_make_again_says_so(tmp_path, capsys):
    settings = {"steps": 1, "batch_size": 8, "run": tmp_path / "run", "progress": False}
    training.fit(models.nice_2d(), torch.randn(20, 2), seed=0, **settings)
    line = complaint(capsys, "evaluate", tmp_path / "run")
    assert line.endswith("run was trained on data that flowlib cannot make again: Tensor")


def test_a_run_with_a_limit_is_evaluated_with_it_and_prepares_no_more(tmp_path, monkeypatch):
    run, asked = str(tmp_path / "run"), []
    few = ["--standin", "--limit", "40", *QUICK]
    assert main(["train", "mnist_plain", *few, "--run", run]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == "digits[:40]"
    before, load = json.loads((tmp_path / "run" / "results.json").read_text()), data.load
    monkeypatch.setattr(data, "load", lambda *args, **kw: asked.append(kw) or load(*args, **kw))
    assert main(["evaluate", run]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == before
    assert [kw["limit"] for kw in asked] == [40]


def test_a_foreign_config_json_in_the_current_folder_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert main(["evaluate", "moons"]) == 0


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_evaluate_and_sample_use_a_gpu_where_there_is_one(gpu, device, monkeypatch, tmp_path):
    asked, load = [], checkpoints.load
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(checkpoints, "load", lambda flow, where: asked.append(where) or load(flow))
    assert main(["evaluate", "moons"]) == 0
    assert main(["sample", "moons", "-o", str(tmp_path / "x.csv")]) == 0
    assert asked == [device, device]


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "moons", *QUICK, "--run", "~/run"]) == 0
    assert main(["evaluate", "~/run"]) == 0
    assert main(["sample", "~/run", "-n", "1", "-o", "~/new/x.csv"]) == 0
    assert (tmp_path / "run" / "results.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "run"]


def test_a_training_that_diverges_is_explained(tmp_path, capsys):
    arguments = ["--steps", "60", "--batch-size", "32", "--lr", "1e18", "--run", tmp_path / "run"]
    assert "training diverged" in complaint(capsys, "train", "moons", *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-n", "-1"], "n must be an integer of at least 1, got -1"),
        (["-n", "0"], "n must be an integer of at least 1, got 0"),
        (["--temperature", "-1"], "temperature must be finite and not negative, got -1.0"),
        (["--temperature", "nan"], "temperature must be finite and not negative, got nan"),
        (["-o", "runs"], "Is a directory: 'runs'"),
    ],
    ids=" ".join,
)
def test_senseless_samples_are_refused(arguments, text, moons, capsys):
    assert text in complaint(capsys, "sample", moons, *arguments)


def test_no_samples_of_images_are_refused_in_plain_words_too(digits, capsys):
    line = complaint(capsys, "sample", digits, "-n", "0")
    assert line == "flowlib: n must be an integer of at least 1, got 0"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps", "0"], "steps must be an integer of at least 1, got 0"),
        (["--batch-size", "0"], "batch_size must be an integer of at least 1, got 0"),
        (["--lr", "-1"], "lr must be positive and finite, got -1.0"),
        (["--epochs", "1"], "a density has no epochs: say how many steps"),
        (["--seconds", "0"], "seconds must be positive, got 0.0"),
        (["--epochs", "1", "--steps", "1"], "give one of steps, epochs and seconds"),
    ],
    ids=" ".join,
)
def test_senseless_training_is_refused_and_leaves_no_folder(arguments, text, tmp_path, capsys):
    assert text in complaint(capsys, "train", "moons", *arguments, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_draws_must_be_one_or_more(digits, capsys):
    assert "must be an integer of at least 1, got 0" in complaint(
        capsys, "evaluate", digits, "--draws", "0"
    )


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    checkpoints.save(models.nice_2d(), tmp_path / "mine.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"torn")
    assert "mine.safetensors is damaged" in complaint(
        capsys, "sample", tmp_path / "mine.safetensors"
    )


def test_ctrl_c_while_scoring_ends_with_130_and_the_run_is_whole(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    command = ["train", "moons", *QUICK, "--run", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("flowlib.recipes.score", interrupted)
        assert main(command) == 130
    assert not (tmp_path / "run" / "results.json").exists()
    assert main([*command, "--resume"]) == 0
    assert torch.isfinite(
        torch.tensor(json.loads((tmp_path / "run" / "results.json").read_text())["kl_nats"])
    )
