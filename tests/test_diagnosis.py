"""Diagnostics: no error of the exact map and a known one of a wrong one, bins that hold what is drawn for them, and the
whole mode on small runs."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.axes import Axes
from PIL import Image

from cmjax.cli import diagnose, train
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.core import curricula, pairs
from cmjax.core.grids import bin_of, karras_grid, level_edges, level_range
from cmjax.core.ode import ddim_step, heun_step
from cmjax.core.oracles import gaussian_denoiser, gaussian_flow_map
from cmjax.core.paths import carry, linear, trig, ve
from cmjax.evaluation import diagnosis
from cmjax.evaluation.diagnosis import consistency_errors, trajectory_times
from cmjax.evaluation.diagnosis_losses import loss_and_gradient_norm, times_within
from cmjax.generation import search as times_mode
from cmjax.runs.record import read_record
from cmjax.runs.trained import load, open_trained
from cmjax.runs.weights import write_model
from cmjax.system.mesh import make_mesh
from cmjax.training.loop import Speed, _LateMetrics
from cmjax.training.method import Method
from cmjax.training.optimizer import make_optimizer
from cmjax.training.step import compile_train_step, init_state, make_method_step
from configs import digits_cd, digits_edm, digits_meanflow

DATA = {"mean": 0.3, "variance": 0.25}
TIMES = jnp.asarray(karras_grid(12, t_min=0.002, t_max=80.0, rho=7.0)[::-1], jnp.float32)
X = 80 * jax.random.normal(jax.random.key(0), (64, 3))


def exact_map(x, t):
    return gaussian_flow_map(x, t, 0.002, **DATA)


def exact_step(velocity, x, t, r):
    return gaussian_flow_map(x, t, r, **DATA)


def errors(f, **changes):
    options = {"path": ve, "ode_step": exact_step, "to_clean": False} | changes
    return consistency_errors(f, partial(gaussian_denoiser, **DATA), X, TIMES, **options)


def test_the_exact_map_has_no_error_and_a_wrong_one_its_own():
    found = errors(exact_map)
    np.testing.assert_allclose(found.step, 0, atol=1e-11)
    np.testing.assert_allclose(found.end, 0, atol=1e-11)
    wrong = errors(lambda x, t: exact_map(x, t) + 0.1 * t)
    t = np.asarray(TIMES, np.float64)
    np.testing.assert_allclose(wrong.end, (0.1 * t) ** 2, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(wrong.step, (0.1 * -np.diff(t)) ** 2, rtol=1e-4, atol=1e-9)


def test_the_teachers_own_estimate_is_measured_too():
    def shrunk(t, s):  # of x − mean, by the flow map
        return np.sqrt((0.25 + s**2) / (0.25 + t**2))

    t = np.asarray(TIMES, np.float64)
    factor = 0.25 / (0.25 + t**2) * shrunk(80.0, t) - shrunk(80.0, 0.002)
    expected = factor**2 * np.mean((np.asarray(X, np.float64) - 0.3) ** 2)
    np.testing.assert_allclose(errors(exact_map).teacher_end, expected, rtol=1e-4, atol=1e-9)
    to_clean = errors(exact_map, to_clean=True)
    assert to_clean.teacher_end[-1] == 0
    assert to_clean.end[-1] > 0  # f's end is noisier


def test_a_solvers_trajectories_come_nearer_with_finer_steps():
    def worst(n):
        times = jnp.asarray(karras_grid(n, t_min=0.002, t_max=80.0, rho=7.0)[::-1], jnp.float32)
        denoise = partial(gaussian_denoiser, **DATA)
        found = consistency_errors(exact_map, denoise, X, times, path=ve, ode_step=heun_step, to_clean=False)
        return float(jnp.max(jnp.sqrt(found.end)))

    assert worst(41) < worst(11) / 8  # a fourfold grid, a method of order 2


@pytest.mark.parametrize("path", [trig(sigma_data=0.5), linear])
def test_errors_are_the_same_on_every_path(path):
    def denoiser(params, x, t):
        return gaussian_denoiser(x, t, **DATA)

    def wrong(params, x, t):
        return exact_map(x, t) * 1.1

    levels = (0.002, 80.0)
    on_ve = errors(partial(wrong, None), ode_step=partial(ddim_step, path=ve), to_clean=True)
    times = jnp.asarray(trajectory_times(12, path, levels, rho=7.0), jnp.float32)
    start = path.a(times[0]) * X
    carried = consistency_errors(
        partial(carry(wrong, ve, path), None),
        partial(carry(denoiser, ve, path), None),
        start,
        times,
        path=path,
        ode_step=partial(ddim_step, path=path),
        to_clean=True,
    )
    for here, there in zip(carried, on_ve, strict=True):
        # float32 knows a time near the noise only to the sixth digit, and its level to the fourth
        np.testing.assert_allclose(here, there, rtol=3e-3, atol=1e-7)


def test_bins_cover_every_level():
    assert level_range(ve, 0.002, 80.0) == (0.002, 80.0)
    assert level_range(linear, 0.0, 1.0) == (0.002, 80.0)
    assert level_range(trig(sigma_data=0.5), 0.0, float(np.arctan(100 / 0.5))) == pytest.approx((0.002, 100), rel=1e-3)
    edges = level_edges(4, path=ve, t_min=0.01, t_max=100.0)
    np.testing.assert_allclose(edges, [0.01, 0.1, 1, 10, 100], rtol=1e-12)
    levels = jnp.array([0.0, 0.05, 0.5, 1.0, 5.0, 50.0, 1e9, jnp.inf])
    assert bin_of(levels, edges).tolist() == [0, 0, 1, 2, 2, 3, 3, 3]


def test_pairs_of_a_bin_lie_in_it_and_are_else_the_samplers_own():
    grid = karras_grid(18, t_min=0.002, t_max=80.0, rho=7.0)
    draw = pairs.grid_pairs(curricula.constant(num_scales=18), t_min=0.002, t_max=80.0, rho=7.0)
    edges, shares = level_edges(6, path=ve, t_min=0.002, t_max=80.0), []
    for place in range(6):
        pair, found, fraction = times_within(
            draw, jax.random.key(place), 32, 0, within=lambda t, place=place: bin_of(t, edges) == place, tries=256
        )
        within = np.isin(np.asarray(bin_of(jnp.asarray(grid[1:]), edges)), place)
        assert bool(found.all()) == within.any()
        assert not found.any() or within[np.searchsorted(grid[1:], np.asarray(pair.t, np.float64) * 0.999)].all()
        np.testing.assert_allclose(pair.r, grid[np.searchsorted(grid, np.asarray(pair.t) * 0.999) - 1], rtol=1e-6)
        assert fraction == pytest.approx(within.mean(), abs=0.03)
        shares.append(float(fraction))
    assert sum(shares) == pytest.approx(1, abs=0.05)


def test_places_of_a_batch_keep_their_own_pairs():
    draw = pairs.dyadic_pairs(steps=8, fraction=0.5)
    pair, found, _ = times_within(draw, jax.random.key(0), 64, 0, within=lambda t: t > 0.9, tries=128)
    assert found.all()
    assert (pair.t == 1).all()
    halved = np.arange(64) < 32
    np.testing.assert_allclose(pair.r, np.where(halved, (pair.t + pair.s) / 2, pair.s))
    assert (np.asarray(pair.t - pair.s)[~halved] == 1 / 8).all()
    _, none, nothing = times_within(draw, jax.random.key(0), 64, 0, within=lambda t: t > 1, tries=16)
    assert not none.any()
    assert nothing == 0


def test_loss_and_gradient_count_what_is_counted():
    def losses(params):
        return jnp.array([1.0, 2.0, 50.0]) * params["a"] ** 2 + params["b"]

    loss, norm = loss_and_gradient_norm(
        losses, {"a": jnp.array(2.0), "b": jnp.zeros(())}, jnp.array([True, True, False])
    )
    assert float(loss) == 6
    np.testing.assert_allclose(norm, np.hypot(6, 1), rtol=1e-6)
    nothing = loss_and_gradient_norm(losses, {"a": jnp.array(2.0), "b": jnp.zeros(())}, jnp.zeros(3, bool))
    assert [float(value) for value in nothing] == [0, 0]


EDGES = level_edges(6, path=ve, t_min=0.002, t_max=80.0)
METHOD = Method(
    lambda model, params, key, batch: batch.times.t * (1 + 1e-3 * params["w"] @ batch.x0.reshape(len(batch.x0), -1).T),
    pairs.grid_pairs(curricula.constant(num_scales=18), t_min=0.002, t_max=80.0, rho=7.0),
)


def trained(bins, parts, steps=3):
    optimizer = make_optimizer(
        optax.scale_by_adam(), learning_rate=lambda step: 1e-2, clip_norm=1.0, weight_decay=0.0, average_rates={}
    )
    step_fn = make_method_step(
        None, METHOD, optimizer, prepare=lambda batch, key: (batch["image"], {}), seed=3, grad_accumulation=parts,
        **({"bins": bins, "bin_of": lambda t: bin_of(t, EDGES)} if bins else {}),
    )  # fmt: skip
    batch = {"image": np.random.default_rng(0).uniform(-1, 1, (32, 2, 2, 1)).astype(np.float32)}
    mesh = make_mesh()
    state = init_state({"w": jnp.zeros(4)}, optimizer, mesh)
    compiled, records = compile_train_step(step_fn, state, {}, batch, mesh), []
    for _ in range(steps):
        state, metrics = compiled(state, {}, batch)
        records.append(jax.device_get(metrics))
    return state, records


@pytest.mark.usefixtures("compiled_as_a_user")
@pytest.mark.parametrize("parts", [1, 4])
def test_bins_of_a_step_add_up_and_change_nothing(parts):
    with_bins, records = trained(6, parts)
    without, plain = trained(0, parts)
    for a, b in zip(jax.tree.leaves(with_bins), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "loss_bins" not in plain[0]
    sums, counts = records[0]["loss_bins"] * parts
    assert counts.sum() == 32
    np.testing.assert_allclose(sums.sum() / 32, records[0]["loss"], rtol=1e-5)
    means = sums[counts > 0] / counts[counts > 0]  # losses at the first step are the times themselves
    assert (EDGES[:-1][counts > 0] <= means * 1.00001).all()
    assert (means <= EDGES[1:][counts > 0] * 1.00001).all()


def test_a_record_has_the_mean_of_its_window_and_no_empty_bin():
    records = {}
    write, speed = lambda step, record: records.update({step: record}), Speed(4, 1, 0.0, None)
    late = _LateMetrics(write, lambda done, text: None, log_every=2, speed=speed, steps_per_call=1)
    for step, (sums, counts) in enumerate([([4, 0, 1], [2, 0, 1]), ([2, 0, 0], [4, 0, 0]), ([9, 9, 9], [3, 3, 3])] * 2):
        tally = jnp.array([sums, counts], float)
        late.push(step, {"loss": jnp.ones(()), "finite": True, "stop": 0, "loss_bins": tally})
    late.flush()
    bins = [{name: value for name, value in records[step].items() if "bin" in name} for step in (2, 4)]
    assert bins[0] == {"loss_bin_00": 1.0, "loss_bin_02": 1.0}
    assert bins[1] == {"loss_bin_00": 13 / 5, "loss_bin_01": 3.0, "loss_bin_02": 2.5}
    json.dumps(bins, allow_nan=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher and a flow map that know nothing, and a student that was trained for three steps."""
    folder = tmp_path_factory.mktemp("runs")

    def small(recipe, **changes):
        config = recipe.get_config()
        config.steps, config.batch_size, config.metrics.num, config.samples.num = 3, 16, 0, 4
        config.net.width, config.net.depth, config.samples.every = 16, 1, 0
        config.log.tensorboard, config.log.every, config.log.bins, config.report = False, 1, 4, False
        config.update(changes)
        return config.to_dict()

    for name, recipe in (("teacher", digits_edm), ("flow", digits_meanflow)):
        params = read_model(small(recipe), 10).init(jax.random.key(0), (8, 8, 1))
        write_model(folder / name, small(recipe), (8, 8, 1), 10, params, imported=None, option="")
    teacher = str(folder / "teacher")
    train.run(small(digits_cd, init_from=teacher, objective={"teacher": teacher}), folder / "cd")
    return folder


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(times_mode, "SAMPLES", 32)


def diagnosed(workdir, **options):
    diagnose.run(workdir, **{"metric": "recall", "num": 16, **options})  # as earlier versions name it
    folder = workdir / "diagnostics"
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size[0] == 960
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_a_student_is_held_against_its_own_teacher(runs, monkeypatch):
    titles, set_title = [], Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda axes, title, **k: titles.append(title) or set_title(axes, title, **k))
    found = diagnosed(runs / "cd")
    assert len(titles) >= 6
    assert [title for title in titles if "cd, step 3" not in title] == []
    assert found.keys() == {"consistency", "loss", "times", "training"}
    along = found["consistency"]
    assert along["teacher"] == str(runs / "teacher")
    assert along["noise_level"][0] == pytest.approx(80)
    assert along["rms"]["end"][-1] == 0  # the boundary condition
    assert np.isfinite(along["rms"]["step"]).all()
    rows = found["loss"]["bins"]
    assert sum(row["fraction"] for row in rows) == pytest.approx(1, abs=1e-6)
    assert all((row["loss"] is None) == (row["samples"] == 0) for row in rows)  # a grid: bins are hit always or never
    assert found["training"]["step"] == [1, 2, 3]
    value = found["times"]["found"]["value"]
    assert found["times"]["found"]["second_time"] < found["times"]["first_time"] == 80
    tried = json.loads((runs / "cd" / "times.json").read_text())["found"]["2, recall_pixels"]["recall_pixels"]
    assert value == max(tried.values())


def test_a_run_ends_with_a_picture_of_its_losses(runs):
    summary = json.loads((runs / "cd" / "summary.json").read_text())
    assert summary["losses"] == str(runs / "cd" / "losses.png")
    with Image.open(summary["losses"]) as picture:
        assert picture.size == (960, 400)


def test_a_flow_map_is_held_against_a_teacher_of_another_path(runs):
    assert diagnosis.teacher_of(open_trained(runs / "flow"), load(runs / "flow"), None) is None
    found = diagnosed(runs / "flow", teacher=str(runs / "teacher"))
    assert found.keys() == {"consistency", "loss", "times"}
    assert found["consistency"]["time"][0] == pytest.approx(80 / 81, rel=1e-5)
    assert np.isfinite(found["consistency"]["rms"]["end"]).all()


def test_a_teacher_has_a_loss_alone(runs):
    assert diagnosed(runs / "teacher").keys() == {"loss"}
    with pytest.raises(ConfigError, match="is a denoiser itself"):
        diagnosed(runs / "teacher", teacher=str(runs / "teacher"))


def test_latents_have_no_second_time(runs):
    trained: Any = SimpleNamespace(of_latents=True)
    latents = dataclasses.replace(load(runs / "cd"), shape=(4, 4, 4))
    with pytest.raises(ConfigError, match=r"metrics of images, which \(4, 4, 4\) are none"):
        times_mode.score_along(trained, latents, "fd")


def test_an_average_of_another_width_has_times_and_no_loss(runs):
    """Its folder has neither the step of the training nor the target's average."""
    config = read_record(runs / "flow")["config"]
    made = {"from": "a run", "format": "average", "licence": ""}
    params = load(runs / "flow").params
    write_model(runs / "wider", config, (8, 8, 1), 10, params, imported=made, option="")
    assert diagnosed(runs / "wider").keys() == {"times"}


def test_what_was_found_is_written_before_what_fails(runs, monkeypatch):
    def fail(*_args):
        raise ConfigError("no held-out data")

    made = diagnosis.Diagnosis({}, [np.zeros((4, 4, 3), np.uint8)])
    monkeypatch.setattr(diagnose, "consistency", lambda *_, **__: made)
    monkeypatch.setattr(diagnose, "losses_by_level", lambda *_, **__: made)
    monkeypatch.setattr(diagnose, "second_times", fail)
    with pytest.raises(ConfigError, match="no held-out data"):
        diagnose.run(runs / "cd", out=str(runs / "half"))
    assert (runs / "half" / "loss.png").exists()
    with pytest.raises(
        ConfigError, match=r"--metric=recall_pixel: must be one of fd, .* \(did you mean recall_pixels\?\)"
    ):
        diagnose.run(runs / "cd", metric="recall_pixel")


def test_a_wrong_teacher_is_named(runs):
    with pytest.raises(ConfigError, match="is a consistency; a denoiser is needed"):
        diagnosed(runs / "cd", teacher=str(runs / "cd"))
    with pytest.raises(ConfigError, match=r"--teacher=nowhere is not a run's folder"):
        diagnosed(runs / "cd", teacher="nowhere")
