"""The classifier learns the digits in seconds, and its cache cannot lie."""

import logging
import os

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cmjax.metrics import classifier
from cmjax.metrics.classifier import perceptron, residual


@pytest.fixture(scope="module")
def digits():
    """(train images, train labels, held-out images, held-out labels); images (n, 8, 8, 1) uint8."""
    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    train, held_out = order[:1500], order[1500:]
    return images[train], data.target[train], images[held_out], data.target[held_out]


@pytest.fixture(scope="module")
def trained(digits):
    return perceptron(digits[0], digits[1], cache_dir=None)


@pytest.fixture
def small(digits):
    """Arguments of a classifier that trains in milliseconds."""
    return {"images": digits[0][:200], "labels": digits[1][:200], "hidden": (4,), "epochs": 2}


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_classifier_knows_the_digits(digits, trained):
    assert trained.accuracy(digits[2], digits[3]) >= 0.95
    wrong_labels = (digits[3] + 1) % 10
    assert trained.accuracy(digits[2], wrong_labels) < 0.05


def test_features_do_not_depend_on_the_block(digits, trained, monkeypatch):
    out = trained(digits[2])
    assert out.shape == (297, 64)
    assert out.dtype == np.float64
    monkeypatch.setattr(classifier, "PERCEPTRON_IMAGES", 100)
    np.testing.assert_allclose(trained(digits[2]), out, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_features_probabilities_and_accuracy_are_scikit_learns(digits, classes, monkeypatch):
    from sklearn.neural_network import MLPClassifier

    networks = []

    def record(*args, **kwargs):
        networks.append(MLPClassifier(*args, **kwargs))
        return networks[-1]

    monkeypatch.setattr("sklearn.neural_network.MLPClassifier", record)
    chosen = digits[1] < classes
    images, labels = digits[0][chosen], digits[1][chosen] * 3 - 1  # labels need be neither dense nor positive
    ours = perceptron(images, labels, cache_dir=None, hidden=(8,), epochs=5)
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    hidden = np.maximum(pixels @ networks[0].coefs_[0] + networks[0].intercepts_[0], 0)
    np.testing.assert_allclose(ours(images), hidden, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        ours.probabilities_of(ours(images)), networks[0].predict_proba(pixels), rtol=1e-3, atol=1e-6
    )
    assert ours.accuracy(images, labels) == networks[0].score(pixels, labels)


def test_the_cache_gives_the_same_features_without_training(small, tmp_path, monkeypatch):
    first = perceptron(**small, cache_dir=tmp_path / "new" / "folder")
    monkeypatch.setattr(classifier, "_train_perceptron", lambda *_: pytest.fail("trained again"))
    second = perceptron(**small, cache_dir=tmp_path / "new" / "folder")
    np.testing.assert_array_equal(first(small["images"]), second(small["images"]))
    np.testing.assert_array_equal(first.classes, second.classes)


def test_training_depends_on_the_seed_alone(small):
    first, again, other = (perceptron(**small, cache_dir=None, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first(small["images"]), again(small["images"]))
    assert np.max(np.abs(first(small["images"]) - other(small["images"]))) > 0.1


def test_other_data_or_settings_are_another_file(small, tmp_path):
    changed_image, changed_label = small["images"].copy(), small["labels"].copy()
    changed_image[7, 3, 3, 0] ^= 1
    changed_label[7] = (changed_label[7] + 1) % 10
    changes = [{}, {"images": changed_image}, {"labels": changed_label}]
    changes += [{"hidden": (5,)}, {"epochs": 3}, {"seed": 1}]
    for change in changes:
        perceptron(**{**small, **change}, cache_dir=tmp_path)
    assert len(_files(tmp_path)) == len(changes)


def test_a_damaged_cache_is_trained_anew(small, tmp_path, caplog):
    expected = perceptron(**small, cache_dir=tmp_path)(small["images"])
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"not a zip", good[: len(good) // 2], good[:-1]]
    for position in rng.integers(0, len(good), 60):
        flipped = bytearray(good)
        flipped[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        got = perceptron(**small, cache_dir=tmp_path)(small["images"])
        np.testing.assert_array_equal(got, expected)
    assert "cannot be read, and is made anew" in caplog.text
    path.write_bytes(b"not a zip")
    perceptron(**small, cache_dir=tmp_path)
    assert path.read_bytes() == good
    assert _files(tmp_path) == [path.name]


def test_a_pickle_in_the_cache_is_not_run(small, tmp_path):
    perceptron(**small, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    with path.open("wb") as file:
        np.savez(file, weight0=np.array([Bomb()], dtype=object))
    perceptron(**small, cache_dir=tmp_path)
    assert _files(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_is_a_warning(small, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way of the folder")
    with caplog.at_level(logging.WARNING):
        trained = perceptron(**small, cache_dir=tmp_path / "file")
    assert trained(small["images"]).shape == (200, 4)
    assert "is not written" in caplog.text


def test_the_residual_classifier_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr("cmjax.nets.features.residual.WIDTHS", (32,))
    monkeypatch.setattr(classifier, "RESIDUAL_IMAGES", 64)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 128, (256, 9, 8, 3), np.uint8), np.arange(256) % 2 + 3
    images[labels == 4, :, :, 0] += 100
    trained = residual(images, labels, cache_dir=tmp_path, epochs=6)
    assert trained.accuracy(images, labels) > 0.95
    (kept,) = tmp_path.iterdir()
    train, count = classifier._train_residual, []
    monkeypatch.setattr(classifier, "_train_residual", lambda *args: count.append(1) or train(*args))
    read = residual(images, labels, cache_dir=tmp_path, epochs=6)
    assert not count
    np.testing.assert_array_equal(read(images[:5]), trained(images[:5]))
    assert read(images[:70]).shape == (70, 32)
    kept.write_bytes(b"damaged")
    again = residual(images, labels, cache_dir=tmp_path, epochs=6)
    assert count
    np.testing.assert_array_equal(again(images[:5]), trained(images[:5]))
    assert kept.read_bytes() != b"damaged"


IMAGES = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(20) % 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perceptron(IMAGES / 255, LABELS, cache_dir=None), "images must be .* uint8"),
        (lambda: perceptron(IMAGES, LABELS[:9], cache_dir=None), r"labels must be \(20,\) integers"),
        (lambda: perceptron(IMAGES, LABELS * 0 + 4, cache_dir=None), r"at least two classes, got only \[4\]"),
        (lambda: perceptron(IMAGES, LABELS, cache_dir=None, epochs=0), "epochs must be at least 1, got 0"),
        (lambda: perceptron(IMAGES, LABELS, cache_dir=None, hidden=()), r"len\(hidden\) must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_images_of_another_shape_are_refused(trained):
    with pytest.raises(ValueError, match=r"got \(20, 4, 4, 1\)"):
        trained(IMAGES)
