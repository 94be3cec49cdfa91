"""Power-function averages: held against NVIDIA's numbers, and those made after training against those tracked in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

import cmjax
from cmjax.cli import average as averaging
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.runs.record import read_record, write_record
from cmjax.training.average_rates import power
from cmjax.training.checkpoint import Checkpointer, CheckpointError
from cmjax.training.optimizer import averages, track_averages
from cmjax.training.posthoc import LARGEST_STD, coefficients, exponent
from cmjax.training.state import TrainState
from configs import digits_ct
from tests.in_process import do


@pytest.fixture(scope="module")
def edm2(shared):
    """The numbers recorded from NVIDIA's EDM2."""
    return np.load(shared / "parity" / "edm2.npz")


def test_exponents_are_edm2s(edm2):
    np.testing.assert_allclose([exponent(std) for std in edm2["std"]], edm2["std_to_exp"], rtol=1e-9)


def test_rates_are_edm2s(edm2, x64):
    for std, expected in zip((0.05, 0.1), edm2["beta"], strict=True):
        steps = edm2["t_next"] // 2048 - 1  # theirs are the images seen after the update, 2048 at each
        np.testing.assert_allclose(power(std=std, batch_size=2048)(steps), expected, rtol=1e-9, atol=0)


def test_coefficients_are_edm2s(edm2):
    for std, expected in zip((0.075, 0.15), edm2["coef"].T, strict=True):
        ours, _ = coefficients(edm2["in_ofs"], edm2["in_std"], step=4, std=std)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, LARGEST_STD])
def test_the_width_is_the_standard_deviation_of_the_profile(std):
    gamma = exponent(std)
    mean, square = ((gamma + 1) / (gamma + 1 + power) for power in (1, 2))  # moments of (γ + 1)·τ^γ on [0, 1]
    np.testing.assert_allclose(np.sqrt(square - mean**2), std, rtol=1e-7)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.289, np.nan])
def test_a_width_out_of_range_is_refused(std):
    with pytest.raises(ValueError, match=r"0\.2887"):
        power(std=std, batch_size=1)


def test_the_tracked_average_is_the_integral_of_its_profile(x64):
    """Parameters of update k count for the times k − 1 to k; the first update replaces what was there."""
    path = np.random.default_rng(0).standard_normal((40, 3))
    k, gamma = np.arange(1, 41), exponent(0.1)
    weights = (k / 40) ** (gamma + 1) - ((k - 1) / 40) ** (gamma + 1)
    np.testing.assert_allclose(follow(path, (0.1,))[0.1][-1], weights @ path, rtol=1e-12)


def test_rates_in_float32_hold_after_a_million_updates():
    expected = (exponent(0.05) + 1) / 1e6
    assert abs(1 - float(power(std=0.05, batch_size=1)(999_999)) - expected) < 0.005 * expected


def follow(path, stds):
    """{std: its average after every update}, as training tracks it, of parameters that go along `path` (n, d)."""
    tracker = track_averages({str(std): power(std=std, batch_size=1) for std in stds})

    def update(carry, params):
        state, before = carry
        state = tracker.update(params - before, state, before)[1]
        return (state, params), averages((state,))

    start = jnp.full(path.shape[1], 1e3)
    _, tracked = jax.lax.scan(update, (tracker.init(start), start), jnp.asarray(path))
    return {std: np.asarray(tracked[str(std)]) for std in stds}


@pytest.mark.parametrize("std", [0.07, 0.15])
def test_averages_made_afterwards_are_those_that_training_would_have_tracked(std):
    path = 5 + np.random.default_rng(1).standard_normal((400, 64)).cumsum(axis=0) / 20
    tracked = follow(path, (0.05, 0.1, std))
    steps = list(range(25, 401, 25))
    times, widths = [*steps, *steps], [0.05] * len(steps) + [0.1] * len(steps)
    weights, residual = coefficients(times, widths, step=400, std=std)
    made = weights @ np.concatenate([tracked[kept][24::25] for kept in (0.05, 0.1)])
    apart = np.linalg.norm(tracked[0.05][-1] - tracked[0.1][-1])
    assert np.linalg.norm(made - tracked[std][-1]) < 0.01 * apart
    assert residual < 0.01


def test_the_residual_is_that_of_the_profiles():
    steps, stds = [2.0, 3.0, 4.0, 4.0], [0.1, 0.05, 0.05, 0.1]
    weights, residual = coefficients(steps, stds, step=4, std=0.2)

    def profile(tau, t, std):
        gamma = exponent(std)
        return (gamma + 1) * tau**gamma / t ** (gamma + 1) * (tau <= t)

    def square(tau, fraction):
        mixture = sum(w * profile(tau, t, s) for w, t, s in zip(weights, steps, stds, strict=True))
        return (profile(tau, 4, 0.2) - fraction * mixture) ** 2

    difference, norm = (quad(square, 0, 4, (fraction,), points=(2, 3))[0] for fraction in (1, 0))
    np.testing.assert_allclose(residual, np.sqrt(difference / norm), rtol=1e-6)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


def test_a_width_that_is_kept_is_found_again_even_where_it_is_kept_twice():
    weights, residual = coefficients([2, 4, 2, 4, 4], [0.05, 0.05, 0.1, 0.1, 0.1], step=4, std=0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 0.5, 0.5], atol=1e-9)
    assert residual < 1e-7


KEPT = ("ema(rate=0.9)", "power(std=0.05)", "power(std=0.1)")


def make_run(workdir):
    """A run of 40 random updates with a checkpoint after every fourth, and the average of std 0.07 at its end."""
    config = digits_ct.get_config().to_dict()
    config["net"] |= {"width": 8, "depth": 1}
    config["optimizer"]["averages"] = KEPT
    write_record(workdir, config, (8, 8, 1), None)
    params = read_model(config, None).init(jax.random.key(0), (8, 8, 1))
    rates = {"ema0": lambda step: 0.9, "ema1": power(std=0.05, batch_size=1), "ema2": power(std=0.1, batch_size=1)}
    tracker = track_averages({**rates, "wanted": power(std=0.07, batch_size=1)})

    @jax.jit
    def advance(updates, opt, params):
        return optax.apply_updates(params, updates), tracker.update(updates, opt, params)[1]

    opt, random = tracker.init(params), np.random.default_rng(0)
    with Checkpointer(workdir / "checkpoints", keep=1, keep_every=4) as checkpointer:
        for step in range(1, 41):
            updates = jax.tree.map(lambda p: 0.1 * random.standard_normal(p.shape).astype(np.float32), params)
            params, opt = advance(updates, opt, params)
            if step % 4 == 0:
                checkpointer.save(TrainState(jnp.asarray(step), params, (opt,), jnp.asarray(True)), step)
    return averages((opt,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    return workdir, make_run(workdir)


@pytest.mark.slow
def test_the_mode_leaves_a_run_like_any_other(trained, tmp_path, capsys):
    workdir, tracked = trained
    do("--mode=average", f"--workdir={workdir}", "--std=0.07,0.1", f"--out={tmp_path / 'ema'}")
    assert "4, 8, 12, 16, 20, 24, 28, 32, 36, 40" in capsys.readouterr().out
    made, again = (cmjax.load(tmp_path / name).params for name in ("ema-0.07", "ema-0.1"))
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, tracked["ema1"], tracked["ema2"]))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, made, tracked["wanted"])) < 0.02 * apart
    assert optax.tree.norm(jax.tree.map(jnp.subtract, again, tracked["ema2"])) < 1e-5 * apart
    record = read_record(tmp_path / "ema-0.07")
    assert record["imported"]["from"] == str(workdir)
    assert record["config"]["optimizer"]["averages"] == ["power(std=0.07)"]
    do("--mode=sample", f"--workdir={tmp_path / 'ema-0.07'}", "--num=4", f"--out={tmp_path / 'x.png'}")
    assert (tmp_path / "x.png").is_file()
    with pytest.raises(ConfigError, match="was made of"):
        averaging.run(tmp_path / "ema-0.07", stds=["0.08"], out=str(tmp_path / "y"))


@pytest.mark.parametrize(
    ("stds", "out", "said"),
    [
        (None, "x", "--std is missing"),
        (["0.08"], None, "--out is missing"),
        (["0.08", "wide"], "x", "--std=wide: must be a number"),
        (["0.3"], "x", r"--std=0\.3: std must lie above 0 and be at most 0\.2887"),
        (["0.08"], ".", r"--out=.* exists and is not empty"),
        (["0.08"], "config.json", r"--out=.* exists and is not empty"),
        (["0.08"], "config.json/x", r"--out=.* cannot be written"),
    ],
)
def test_bad_options_are_one_clear_message(trained, stds, out, said):
    workdir, _ = trained
    before = sorted(workdir.iterdir())
    with pytest.raises(ConfigError, match=said):
        averaging.run(workdir, stds=stds, out=out and str(workdir / out))
    assert sorted(workdir.iterdir()) == before


def test_a_run_that_averages_cannot_be_made_of_is_told_why(trained, tmp_path):
    config = read_record(trained[0])["config"]
    for kept, said in ((["ema(rate=0.9)"], "keeps no power averages"), (list(KEPT), r"has 1 checkpoint\(s\)")):
        workdir = tmp_path / kept[-1]
        write_record(workdir, config | {"optimizer": config["optimizer"] | {"averages": kept}}, (8, 8, 1), None)
        (workdir / "checkpoints" / "7").mkdir(parents=True)
        with pytest.raises(ConfigError, match=said):
            averaging.run(workdir, stds=["0.08"], out=str(tmp_path / "x"))
    for step in (3, 7):
        (workdir / "checkpoints" / str(step)).mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match=r"checkpoint 3 of .* the average is made of the others"):
        averaging.run(workdir, stds=["0.08"], out=str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_width_far_from_those_kept_is_warned_of(trained, tmp_path, caplog):
    averaging.run(trained[0], stds=["0.012"], out=str(tmp_path / "x"))
    assert "a width nearer to those kept" in caplog.text
