"""The table of a run's end orders good and bad samples, and is the registry's metrics."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cmjax.metrics import functional
from cmjax.metrics.classifier import perceptron
from cmjax.metrics.comparison import RUN_VALUES, compare_images
from cmjax.metrics.registry import METRIC_OF, METRICS, better
from cmjax.metrics.table import format_table

PIXEL_VALUES = ("precision_pixels", "recall_pixels", "density_pixels", "coverage_pixels")


@pytest.fixture(scope="module")
def digits():
    """(train images, train labels, held-out images); images (n, 8, 8, 1) uint8."""
    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[:1500]], data.target[order[:1500]], images[order[1500:]]


@pytest.fixture(scope="module")
def trained(digits):
    return perceptron(digits[0], digits[1], cache_dir=None)


def test_every_value_has_one_metric_and_a_direction():
    values = [value for metric in METRICS.values() for value in metric.values]
    assert len(values) == len(set(values)) == len(METRIC_OF)
    assert {better(value) for value in values} == {"larger", "smaller"}
    assert (better("fid"), better("recall_pixels"), better("loss")) == ("smaller", "larger", "")
    assert ("fd", *PIXEL_VALUES) == RUN_VALUES


def test_the_table_orders_real_images_a_gaussian_and_noise(digits, trained):
    train, held_out = digits[0], digits[2]
    rows = {
        "training images": train,
        "fitted Gaussian": functional.fitted_gaussian(train, 1500, 0),
        "noise": np.random.default_rng(0).integers(0, 256, train.shape, dtype=np.uint8),
    }
    table = compare_images(rows, held_out=held_out, features=trained)
    assert list(table) == list(rows)
    real, gaussian, noise = table.values()
    assert real["density_pixels"] == pytest.approx(1, abs=0.1)
    assert min(real[f"{name}_pixels"] for name in ("coverage", "precision", "recall")) > 0.93
    assert gaussian["density_pixels"] == pytest.approx(0.48, abs=0.06)
    for good, worse in ((real, gaussian), (gaussian, noise)):
        assert worse["fd"] > 2 * good["fd"]
        assert all(worse[name] < good[name] for name in PIXEL_VALUES)


def test_the_table_is_the_metrics_on_features_and_pixels(digits, trained):
    fake, held_out = digits[0][:150], digits[2]
    row = compare_images({"a": fake}, held_out=held_out, features=trained)["a"]
    pixels = functional.prdc(held_out.reshape(297, 64) / 255, fake.reshape(150, 64) / 255, k=5)
    assert [row[name] for name in PIXEL_VALUES] == pytest.approx(list(pixels), abs=1e-3)
    assert row["fd"] == functional.frechet_distance(trained(held_out), trained(fake))
    assert compare_images({"a": fake}, held_out=held_out, features=None)["a"]["fd"] is None
    assert compare_images({}, held_out=held_out, features=trained) == {}


def test_rows_are_compared_at_the_size_of_the_smallest(digits, trained):
    held_out, many, few = digits[2], digits[0][:900], digits[0][900:1000]
    table = compare_images({"many": many, "few": few}, held_out=held_out, features=trained)
    alone = compare_images({"many": many}, held_out=held_out, features=trained)["many"]
    assert table["few"] == compare_images({"few": few}, held_out=held_out, features=trained)["few"]
    assert table["many"]["coverage_pixels"] < 0.9 < alone["coverage_pixels"]  # 100 images cannot cover what 900 do


def test_the_text_is_aligned():
    table = {"1 step": {"fd": 12.3456, "density": 0.5}, "fitted Gaussian": {"fd": None, "density": 1.0}}
    lines = format_table(table).splitlines()
    assert [line.split() for line in lines] == [
        ["fd", "density"],
        ["1", "step", "12.346", "0.500"],
        ["fitted", "Gaussian", "-", "1.000"],
    ]
    assert len({len(line) for line in lines}) == 1


IMAGES = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("rows", "held_out", "message"),
    [
        ({"a": IMAGES[:, :3]}, IMAGES, r"rows\['a'\] must be images of"),
        ({"a": IMAGES[:5]}, IMAGES, "a must hold at least 6 images, got 5"),
        ({"a": IMAGES / 1}, IMAGES, r"rows\['a'\] must be .* uint8"),
        ({"a": IMAGES}, IMAGES[:4], "held_out must hold at least 6 images, got 4"),
    ],
)
def test_a_wrong_argument_is_named(rows, held_out, message):
    with pytest.raises(ValueError, match=message):
        compare_images(rows, held_out=held_out, features=None)
