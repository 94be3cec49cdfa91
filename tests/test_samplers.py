"""By which sampler a run's samples are drawn: the recipe's choice, the command line's, and the names it leaves."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cmjax.cli import train
from cmjax.cli.command_line import parse
from cmjax.config.fields import ConfigError
from cmjax.config.methods import METHODS, read_model
from cmjax.config.recipes import load_recipe
from cmjax.config.recorded import recorded_samples
from cmjax.config.run import read_run
from cmjax.config.samples import SamplingOptions
from cmjax.core import solvers
from cmjax.core.model import BoundModel
from cmjax.core.paths import ve
from cmjax.evaluation.results import read_rows, row_there, table
from cmjax.generation import files, search
from cmjax.generation.sampling import (
    class_labels,
    consistency_sampler,
    diffusion_sampler,
    sample_images,
    with_guidance,
)
from cmjax.runs.trained import open_trained
from cmjax.runs.weights import write_model
from configs import digits_classes, digits_edm, digits_meanflow, digits_trig

SMALL = {"width": 16, "depth": 1}


def small(recipe):
    config = recipe.get_config()
    config.net.update(SMALL)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of networks that are not trained: a flow map, and teachers, one with classes and one on another path."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {"flow": digits_meanflow, "edm": digits_edm, "classes": digits_classes, "other": digits_trig}
    for name, recipe in recipes.items():
        config = small(recipe)
        classes = 10 if name == "classes" else None
        params = read_model(config.to_dict(), classes).init(jax.random.key(0), (8, 8, 1))
        params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
        write_model(folder / name, config.to_dict(), (8, 8, 1), classes, params, imported=None, option="")
    return folder


def do(*arguments):
    module, options = parse([*map(str, arguments)])
    module.start(options)


def images(runs, tmp_path, name, *arguments):
    out = tmp_path / "x.npz"
    do("sample", f"--workdir={runs / name}", "--num=12", f"--out={out}", *arguments)
    return np.load(out)["images"]


@pytest.mark.parametrize("name", ["digits_meanflow", "digits_imf", "digits_shortcut", "digits_alphaflow", "mnist_imf",
                                  "cifar_meanflow", "cifar_imf", "cifar_shortcut", "cifar_alphaflow",
                                  "cifar_small_meanflow", "cifar_small_imf", "cifar_small_soflow"])  # fmt: skip
def test_recipes_of_flow_maps_go_from_time_to_time_as_their_papers_do(name):
    assert METHODS[load_recipe(name).objective.name].kind == "flow_map"
    assert read_run(load_recipe(name).to_dict(), data_there=False).samples.gamma == 0


def test_consistency_models_and_older_runs_are_sampled_in_multiple_steps():
    assert read_run(load_recipe("digits_ct").to_dict()).samples.gamma is None
    older = digits_meanflow.get_config()
    del older.samples.sampler
    assert recorded_samples(older.to_dict()).gamma is None


@pytest.mark.parametrize(
    ("recipe", "sampler", "message"),
    [
        (
            "digits_ct",
            "chain(gamma=0.0)",
            r"config.samples.sampler=.*: is of flow maps .*; this is a consistency model",
        ),
        ("digits_meanflow", "chain(gamma=1.5)", r"config.samples.sampler=.*: gamma must be at most 1, not 1.5"),
        ("digits_meanflow", "chains", r"config.samples.sampler='chains': must be one of multistep, chain \(did you"),
        ("digits_meanflow", "chain(eta=0)", r"config.samples.sampler=.*: chain takes gamma, not eta"),
        ("digits_pd", "multistep", r"config.samples.sampler='multistep': is of consistency models; a diffusion model"),
    ],
)
def test_a_sampler_that_does_not_fit_is_named(recipe, sampler, message):
    config = load_recipe(recipe)
    with config.unlocked():
        config.samples.sampler = sampler
        with pytest.raises(ConfigError, match=message):
            read_run(config.to_dict())


def test_all_noise_is_of_multistep_sampling_alone():
    config = digits_meanflow.get_config()
    config.samples.full_noise = True
    with pytest.raises(ConfigError, match=r"config.samples.full_noise=True: is of multistep sampling"):
        read_run(config.to_dict())


def test_the_command_line_takes_the_runs_sampler_or_another(runs, tmp_path):
    own, multistep, chain = (
        images(runs, tmp_path, "flow", "--times=1,0.5", *more)
        for more in ([], ["--sampler=multistep"], ["--sampler=chain(gamma=0.0)"])
    )
    np.testing.assert_array_equal(own, chain)
    assert np.abs(own.astype(int) - multistep).max() > 1
    by_gamma, by_name = (
        images(runs, tmp_path, "flow", "--times=1,0.5", more) for more in ("--gamma=0.5", "--sampler=chain(gamma=0.5)")
    )
    np.testing.assert_array_equal(by_gamma, by_name)
    assert np.abs(own.astype(int) - by_gamma).max() > 1


def test_each_sampler_has_rows_of_its_own_and_one_evaluation_is_the_same(runs):
    asked = ["evaluate", f"--workdir={runs / 'flow'}", "--num=40", "--metrics=fd", "--times=1", "--times=1,0.5"]
    do(*asked, "--sampler=multistep", "--sampler=chain(gamma=0)")
    do(*asked)  # the run's own, which are there
    rows = {row["sampler"]: row["metrics"]["fd"] for row in read_rows(runs / "flow" / "evaluation.jsonl")}
    assert list(rows) == ["1-step", "2-step", "1-step-chain", "2-step-chain"]
    assert rows["1-step"] == pytest.approx(rows["1-step-chain"], rel=1e-3)
    assert abs(rows["2-step"] - rows["2-step-chain"]) > 1e-3 * rows["2-step"]


def test_a_solvers_parameters_are_a_part_of_its_name(runs):
    asked = ["evaluate", f"--workdir={runs / 'edm'}", "--num=40", "--metrics=fd", "--steps=3"]
    for churn in (5, 40):
        do(*asked, f"--solver=churn(s_churn={churn})")
    rows = read_rows(runs / "edm" / "evaluation.jsonl")
    assert [row["sampler"] for row in rows] == ["churn(s_churn=5)-3", "churn(s_churn=40)-3"]
    assert [row["evaluations"] for row in rows] == [5, 5]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flow", ["--sampler=chain(gamma=2)"], r"--sampler='chain\(gamma=2\)': gamma must be at most 1, not 2"),
        ("flow", ["--gamma=0", "--sampler=multistep"], r"--gamma=0.0 is short for .*: give one of them"),
        ("edm", ["--sampler=multistep"], r"--sampler=multistep: is for consistency models; .* has its --solver"),
        ("edm", ["--gamma=0"], r"--gamma=0.0: is for consistency models"),
    ],
)
@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_mistakes_are_named(runs, mode, name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        do(mode, f"--workdir={runs / name}", "--num=10", *arguments)


def test_times_are_searched_for_and_kept_for_each_sampler(runs, monkeypatch):
    trained = open_trained(runs / "flow")
    searched = []

    def score_along(trained, flow_map, metric, samples, decoder):
        searched.append(samples.gamma)
        best = 0.3 if samples.gamma is None else 0.6
        return lambda times: abs(times[1] - best)

    monkeypatch.setattr(search, "score_along", score_along)
    flow_map = trained.load()
    for gamma in (None, 0.0, 0.5, 0.0):
        samples = replace(trained.samples, gamma=gamma)
        times = search.find_times(trained, flow_map, 2, samples=samples)
        assert times[1] == pytest.approx(0.3 if gamma is None else 0.6, abs=0.05)
    assert searched == [None, 0.0, 0.5]
    assert search.find_times(trained, flow_map, 2)[1] == pytest.approx(0.6, abs=0.05)  # the run's own
    kept = json.loads((runs / "flow" / search.RECORD).read_text())["found"]
    assert list(kept) == ["2", "2, 2-step-chain", "2, 2-step-chain-0.5"]


def test_a_run_names_its_sampler_in_grids_metrics_and_rows(tmp_path):
    config = small(digits_meanflow)
    config.steps, config.batch_size, config.checkpoint.save_every, config.metrics.num = 2, 8, 2, 40
    config.samples.every, config.samples.num, config.report, config.log.tensorboard = 2, 4, False, False
    config.evaluate.update({"every": 2, "num": 40, "metrics": ("fd",)})
    train.run(config.to_dict(), tmp_path / "run")
    names = ["1-step-chain", "2-step-chain"]
    assert sorted(file.name for file in (tmp_path / "run" / "samples").iterdir()) == [f"0000002-{n}.png" for n in names]
    assert list(json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"])[:2] == names
    assert [row["sampler"] for row in read_rows(tmp_path / "run" / "evaluation.jsonl")] == names


def test_every_estimate_is_clipped_where_it_is_asked_for(runs, tmp_path):
    beyond = BoundModel({}, lambda params, x, t: x / t + 0.5, (2, 2, 4), 0.002, 80.0, "denoiser", ve)
    for make in (consistency_sampler, lambda times, samples: diffusion_sampler(samples, times)):
        drawn = [
            sample_images(
                make((80.0, 0.8), SamplingOptions(clip=clip, solver=solvers.euler)), beyond, 3, seed=0, conditions={}
            )
            for clip in (True, False)
        ]
        assert np.abs(drawn[0]).max() == 1 < np.abs(drawn[1]).max()
    assert images(runs, tmp_path, "edm", "--steps=3", "--clip").shape == (12, 8, 8, 1)
    assert not open_trained(runs / "edm").samples.clip


def test_random_labels_are_a_function_of_the_seed_and_the_index():
    many = class_labels(2000, 10, random_seed=3)["label"]
    np.testing.assert_array_equal(class_labels(50, 10, random_seed=3)["label"], many[:50])
    assert many.dtype == np.int32
    assert stats.chisquare(np.bincount(many, minlength=10)).pvalue > 1e-3
    assert (many != class_labels(2000, 10, random_seed=4)["label"]).mean() > 0.8
    np.testing.assert_array_equal(class_labels(12, 10)["label"], np.arange(12) % 10)


def test_a_row_names_what_its_samples_depend_on(runs):
    """The guiding model is the guided one: their mix is the unguided model, whatever the scale."""
    asked = ["evaluate", f"--workdir={runs / 'classes'}", "--num=40", "--metrics=fd", "--steps=3"]
    ways = {
        "": {"labels": "balanced"},
        "--labels=random": {"labels": "random"},
        "--guidance=2": {"guidance": 2.0, "evaluations": 10},
        "--guidance=2 --guidance_interval=0.3,5": {"guidance_interval": [0.3, 5.0]},
        f"--guidance=2 --autoguidance={runs / 'classes'}": {"guidance": 2.0, "evaluations": 10},
        "--clip": {"clip": True},
    }
    for way in ways:
        do(*asked, *way.split())
    do(*asked)
    rows = read_rows(runs / "classes" / "evaluation.jsonl")
    assert len(rows) == len(ways)
    for row, expected in zip(rows, ways.values(), strict=True):
        assert expected.items() <= row.items()
    figures = [row["metrics"]["fd"] for row in rows]
    assert figures[4] == pytest.approx(figures[0], rel=1e-3)
    assert min(abs(figures[0] - figures[i]) for i in (1, 2)) > 1e-6 < abs(figures[2] - figures[3])
    assert rows[4]["autoguidance"].endswith("classes/checkpoints/0 " + rows[4]["average"])
    older = {name: value for name, value in rows[0].items() if name != "labels"}
    assert row_there([older], rows[0], rows[0]["protocol"]) == older
    assert "labels random" in table(rows)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "classes",
            ["--guidance_interval=5,0.3", "--guidance=2"],
            r"--guidance_interval=\(5.0, 0.3\): must be two times",
        ),
        ("classes", ["--guidance_interval=a,b", "--guidance=2"], r"--guidance_interval=a,b: must be two times, as"),
        ("classes", ["--guidance_interval=90,99", "--guidance=2"], r"enclose some of \[0.002, 80.0\]"),
        ("classes", ["--guidance_interval=0.3,5"], r"--guidance_interval=0.3,5: has no effect at guidance 1"),
        (
            "classes",
            ["--guidance_channels=3"],
            r"channels=3: has no effect at guidance 1.*; the samples have 1 channels",
        ),
        (
            "classes",
            ["--guidance_channels=1", "--guidance=2", "--autoguidance={classes}"],
            r"--guidance_channels=1: is of guidance by labels",
        ),
        ("classes", ["--autoguidance={classes}"], r"--autoguidance=.*: has no effect at guidance 1: name a scale"),
        ("classes", ["--autoguidance={edm}", "--guidance=2"], r"its number of classes is 0; that of .*classes is 10"),
        ("edm", ["--autoguidance={flow}", "--guidance=2"], r"its kind is flow_map; that of .*edm is denoiser"),
        ("edm", ["--autoguidance={other}", "--guidance=2"], r"its path is trig; that of .*edm is ve"),
        ("edm", ["--autoguidance={edm}/no", "--guidance=2"], r"--autoguidance=.*/no is not a run's folder"),
        ("edm", ["--autoguidance={edm}", "--autoguidance_average=4", "--guidance=2"], r"keeps 1 average"),
        ("edm", ["--autoguidance_average=1"], r"--autoguidance_average=1: of which run\?"),
        ("flow", ["--autoguidance={edm}", "--guidance=2"], r"--autoguidance=.*: is of diffusion models"),
        ("edm", ["--guidance=2"], r"--guidance=2.0: it is by classes, which the model has not, or by --autoguidance"),
        ("edm", ["--labels=random"], r"--labels=random: the model has no classes"),
        ("flow", ["--clip"], r"--clip: is of multistep sampling"),
    ],
)
@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_mistakes_of_guidance_labels_and_clipping_are_named(runs, mode, name, arguments, message):
    arguments = [argument.format(**{run.name: run for run in runs.iterdir()}) for argument in arguments]
    with pytest.raises(ConfigError, match=message):
        do(mode, f"--workdir={runs / name}", "--num=10", *arguments)


@pytest.mark.parametrize(
    ("recipe", "field", "value", "message"),
    [
        ("digits_guided_cd", "guidance_interval", (5.0,), r"config.samples.guidance_interval=.*: must be two times"),
        ("digits_classes", "guidance_interval", (0.3, 5.0), r"guidance_interval=.*: has nothing to limit where"),
        (
            "digits_classes",
            "guidance_channels",
            3,
            r"guidance_channels=3: has nothing to limit where config.samples.gui",
        ),
        ("digits_meanflow", "clip", True, r"config.samples.clip=True: is of multistep sampling"),
        ("digits_edm", "clip", "yes", r"config.samples.clip='yes': must be True or False"),
    ],
)
def test_what_a_recipe_says_of_its_samples_is_checked(recipe, field, value, message):
    config = load_recipe(recipe)
    with config.ignore_type():
        config.samples[field] = value
    with pytest.raises(ConfigError, match=message):
        read_run(config.to_dict())


def test_parts_of_a_large_draw_depend_on_every_choice(runs, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(files, "write_array", lambda *_, settings: written.append(settings))
    ways = ["", "--labels=random", "--clip", "--guidance=2", "--guidance=2 --guidance_interval=0.3,5"]
    ways += [f"--guidance=2 --autoguidance={runs / 'classes'}", "--solver=churn(s_churn=5)", "--steps=4", "--label=3"]
    for way in ways:
        do("sample", f"--workdir={runs / 'classes'}", "--num=12", f"--out={tmp_path / 'x.npz'}", *way.split())
    assert len({json.dumps(settings) for settings in written}) == len(ways)


def test_samples_are_guided_in_so_many_channels():
    def model(params, x, t, *, label):
        return x * jnp.where(label < 0, 1.0, 2.0)[:, None]

    flow_map, labels = BoundModel({}, model, (3,), 0.0, 1.0, "denoiser", ve), {"label": np.array([0, 1])}
    guided_map, conditions = with_guidance(flow_map, labels, 4.0, takes=False, channels=2)
    conditions = jax.tree.map(jnp.asarray, conditions)
    np.testing.assert_array_equal(guided_map(jnp.ones((2, 3)), 0.5, **conditions), [[5, 5, 2]] * 2)
    assert SamplingOptions(guidance_channels=2).choices == {"guidance_channels": 2}


def test_a_network_that_takes_the_interval_of_guidance_is_given_it():
    labels = {"label": np.array([0, 1])}
    _, conditions = with_guidance(
        BoundModel({}, lambda *_, **__: 0, (2,), 0.0, 1.0, "flow_map", ve), labels, 2.0,
        takes=True, interval=(0.2, 0.7), takes_interval=True,
    )  # fmt: skip
    np.testing.assert_allclose(conditions["interval"], [[0.2, 0.7]] * 2)
    np.testing.assert_allclose(conditions["guidance"], 2.0)
