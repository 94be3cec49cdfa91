"""Signals and points: read from an .npz, trained, sampled, compared, shown; and refused where images are needed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.config.fields import ConfigError
from cmjax.config.recipes import load_recipe
from cmjax.config.run import read_run
from cmjax.data.base import ArraySource, DataError, is_image, kind_of
from cmjax.data.batches import preprocess
from cmjax.data.checks import check_source, check_spread
from cmjax.data.sources import arrays
from cmjax.metrics.comparison import compare
from cmjax.metrics.functional import fitted_gaussian
from cmjax.plotting.plots import GREY, dot_plot, image_grid
from cmjax.plotting.samples import CELL, cell_of, image_of, signal_grid
from tests.in_process import do

RNG = np.random.default_rng(0)
SIGNALS = RNG.normal(0, 0.5, (120, 6, 2)).astype(np.float32)
POINTS = RNG.normal(0, 0.5, (120, 3)).astype(np.float32)
OF = {"signals": SIGNALS, "points": POINTS}
SMALL = (
    "--config=digits_ct",
    "--config.steps=4",
    "--config.batch_size=8",
    "--config.net.width=16",
    "--config.net.depth=1",
    "--config.metrics.num=50",
    "--config.samples.num=4",
    "--config.samples.every=2",
    "--config.log.every=2",
    "--config.checkpoint.save_every=4",
    "--config.log.tensorboard=False",
    "--config.report=False",
)


def test_the_kind_follows_from_the_axes():
    shapes = {(8, 8, 3): "images", (8, 8, 1): "images", (8, 8, 4): "latents", (64, 1): "signals", (3,): "points"}
    assert {shape: kind_of(shape) for shape in shapes} == shapes
    assert [shape for shape in shapes if is_image(shape)] == [(8, 8, 3), (8, 8, 1)]


@pytest.mark.parametrize("kind", OF)
def test_an_array_is_read_with_its_labels_and_a_tenth_is_held_out(tmp_path, kind):
    np.savez(tmp_path / "x.npz", **{kind: OF[kind].astype(np.float64)}, labels=np.arange(120) % 3)
    train, test = (arrays(tmp_path / "x.npz", split, kind=kind) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (108, 12, 3)
    assert train.shape == OF[kind].shape[1:]
    batch = train.gather(np.arange(108))
    assert batch["image"].dtype == np.float32
    both = np.concatenate([batch["image"], test.gather(np.arange(12))["image"]])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(OF[kind], axis=0))
    images = jnp.asarray(batch["image"])
    np.testing.assert_array_equal(preprocess(images, jax.random.key(0), horizontal_flip=False), batch["image"])


def test_whole_numbers_are_values_and_no_pixels(tmp_path):
    np.savez(tmp_path / "x.npz", points=np.arange(40, dtype=np.uint8).reshape(20, 2), test_points=np.ones((5, 2), int))
    train, test = (arrays(tmp_path / "x.npz", split, kind="points") for split in ("train", "test"))
    np.testing.assert_array_equal(train.gather(np.arange(2))["image"], [[0.0, 1.0], [2.0, 3.0]])
    assert (len(train), len(test), test.gather(np.arange(1))["image"].dtype) == (20, 5, np.float32)


@pytest.mark.parametrize(
    ("kind", "there", "message"),
    [
        ("signals", {"images": SIGNALS}, 'has no array "signals"; it has images'),
        (
            "signals",
            {"signals": SIGNALS[..., 0]},
            r"must be \(n, length, channels\), got shape .*; save signals\[..., No",
        ),
        ("points", {"points": SIGNALS}, r"must be \(n, features\), got shape \(120, 6, 2\)$"),
        ("points", {"points": np.where(np.arange(3) == 1, np.nan, POINTS)}, r'"points"\[0\] holds NaN'),
        ("points", {"points": POINTS > 0}, "points must be numbers, got bool"),
        ("points", {"points": POINTS[:0]}, "at least one example"),
        ("points", {"points": POINTS[:1]}, "holds one point"),
        ("signals", {"signals": SIGNALS, "test_signals": SIGNALS[:, :3]}, 'and "test_signals" of .* differ'),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, kind, there, message):
    np.savez(tmp_path / "x.npz", **there)
    with pytest.raises(DataError, match=message):
        arrays(tmp_path / "x.npz", "train", kind=kind)


def test_data_that_are_all_the_same_or_far_from_the_model_are_said(caplog):
    with pytest.raises(DataError, match=r"every value of all 5 signals is 1\.0"):
        check_source(ArraySource(np.ones((5, 4, 1), np.float32)), "x")
    with pytest.raises(DataError, match="holds one point to train on; add points"):
        check_source(ArraySource(POINTS[:1]), "x")
    check_spread(ArraySource(POINTS), "x", 0.5, "config.model.sigma_data")
    assert not caplog.records
    check_spread(ArraySource(20 * POINTS), "x", 0.5, "config.model.sigma_data")
    assert r"Save (points - " in caplog.text


def test_metrics_are_of_the_values_themselves(tmp_path):
    train, held_out = ArraySource(SIGNALS[:60]), ArraySource(SIGNALS[60:])
    samples = {"same": SIGNALS[60:], "moved": SIGNALS[60:] + 3}
    table = compare(samples, train, held_out, cache_dir=tmp_path)
    assert list(table) == ["same", "moved", "training signals", "fitted Gaussian"]
    assert table["same"]["fd"] == pytest.approx(0, abs=1e-6)
    # the squared distance of the means: 3² in each of 12 values
    assert table["moved"]["fd"] == pytest.approx(9 * 12, rel=1e-5)
    assert (table["same"]["coverage_pixels"], table["moved"]["coverage_pixels"]) == (1, 0)


def test_the_gaussian_of_floats_has_their_moments_and_no_pixels():
    fitted = fitted_gaussian(POINTS, 20_000, 0)
    assert fitted.dtype == np.float32
    np.testing.assert_allclose(np.cov(fitted.T), np.cov(POINTS.T), atol=0.01)


def test_each_kind_is_shown_in_its_way():
    images = RNG.integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    np.testing.assert_array_equal(image_of(images), image_grid(images))
    np.testing.assert_array_equal(image_of(SIGNALS[:4]), signal_grid(SIGNALS[:4]))
    np.testing.assert_array_equal(image_of(POINTS), dot_plot(POINTS))
    assert cell_of((6, 2)) == (CELL[0] + 2, CELL[1] + 2)


def test_a_line_is_high_where_its_signal_is():
    """A ramp: its leftmost dark pixels lie below the middle of the cell, its rightmost above."""
    grid = signal_grid(np.linspace(-1, 1, 32, dtype=np.float32)[None, :, None])
    cell = grid[-CELL[0] - 2 : -2, -CELL[1] - 2 : -2]
    dark = np.argwhere(cell[..., 0] < GREY)
    left, right = dark[dark[:, 1].argmin()], dark[dark[:, 1].argmax()]
    assert left[0] > 0.8 * CELL[0]
    assert right[0] < 0.2 * CELL[0]


@pytest.mark.parametrize("samples", [SIGNALS[:3, :1], SIGNALS[:1] * np.nan, np.zeros((2, 5, 1)), POINTS[:, :1]])
def test_odd_samples_are_shown_too(samples):
    assert image_of(samples).ndim == 3


def config(**changes):
    made = load_recipe("signals_ct")
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        with made.ignore_type():
            (made[section] if section else made)[field] = value
    return made.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__horizontal_flip": True}, "config.data.horizontal_flip=True: is of images, not signals"),
        ({"data__augment": "edm(probability=0.1)"}, "config.data.augment=.*: is of images, not signals"),
        ({"data__image_size": 8}, "config.data.image_size=8: is of images, and the data are signals: set it to 0"),
        ({"data__channels": 1}, "config.data.channels=1: is of images"),
        (
            {"data__autoencoder": "x"},
            "config.data.autoencoder='x': decodes latents, and the data 'signals' are signals",
        ),
        ({"objective__distance": 'lpips(vgg="a", heads="b")'}, "config.objective.distance=.*: compares images"),
    ],
)
def test_fields_of_images_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_run(config(**changes), data_there=False)


def test_a_network_of_images_is_refused():
    made = load_recipe("mnist_ect")
    made.data.name, made.data.data_dir, made.data.horizontal_flip = "points", "x.npz", False
    with pytest.raises(
        ConfigError, match=r"config\.net\.name='unet': takes images, and the data are points, which mlp"
    ):
        read_run(made.to_dict(), data_there=False)


@pytest.mark.parametrize("kind", OF)
def test_a_run_from_its_data_to_its_metrics(tmp_path, capsys, kind):
    np.savez(tmp_path / "x.npz", **{kind: OF[kind]})
    of_data, workdir = (f"--config.data.name={kind}", f"--config.data.data_dir={tmp_path}/x.npz"), tmp_path / "run"
    run = f"--workdir={workdir}"
    do("--mode=train", *SMALL, *of_data, run)
    summary = json.loads((workdir / "summary.json").read_text())
    assert {"1-step", "2-step", f"training {kind}", "fitted Gaussian"} == set(summary["metrics"])
    assert all(np.isfinite(value) for row in summary["metrics"].values() for value in row.values())
    assert {path.name[:7] for path in (workdir / "samples").iterdir()} == {"0000002", "0000004"}

    do("--mode=sample", run, "--num=5", f"--out={tmp_path}/y.npz")
    with np.load(tmp_path / "y.npz") as written:
        assert list(written) == [kind]
        assert (written[kind].shape, written[kind].dtype) == ((5, *OF[kind].shape[1:]), np.float32)
    assert f"5 {kind} of" in capsys.readouterr().out
    # what was sampled can be trained on
    assert arrays(tmp_path / "y.npz", "train", kind=kind).shape == OF[kind].shape[1:]

    do("--mode=status", run)
    assert f"{kind} in {tmp_path}/x.npz, {'x'.join(map(str, OF[kind].shape[1:]))}" in capsys.readouterr().out
    do("--mode=evaluate", run, "--num=40", "--metrics=fd,prdc", "--features=dataset")
    row = json.loads((workdir / "evaluation.jsonl").read_text())
    assert row["protocol"]["metrics"]["fd"]["of"] == "the values themselves"
    assert {"fd", "coverage"} <= set(row["metrics"])
    for mode, message in {
        ("--mode=evaluate", "--metrics=fid"): f"--metrics=fid: is of images, and the data are {kind}",
        ("--mode=evaluate", "--metrics=is", "--features=dataset"): "--metrics=is: is of images",
        ("--mode=evaluate", "--check", "--features=dataset", "--num=20"): "--check: damages images",
        ("--mode=evaluate", "--images=x.npz"): "--images=x.npz: are compared with images",
        ("--mode=gallery",): f"samples {kind} .*, and images are needed",
        ("--mode=edit", "--task=inpainting", "--image=x.png"): f"samples {kind} .*, and images are needed",
    }.items():
        with pytest.raises(ConfigError, match=message):
            do(*mode, run)
