"""A reference is used, or refused in a line: files of statistics, and sets with few images."""

import numpy as np
import pytest

from cmjax.config.evaluation import Evaluation, evaluation_of_options
from cmjax.config.fields import ConfigError
from cmjax.data.base import ArraySource
from cmjax.data.sources import digits
from cmjax.evaluation import evaluator
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.networks import FeatureNetwork, through
from cmjax.evaluation.results import notes
from cmjax.evaluation.sweep import evaluate_once
from cmjax.interop.statistics import OfNetwork, read_statistics, write_statistics
from cmjax.metrics import comparison
from cmjax.metrics.accumulator import Accumulator
from cmjax.metrics.classifier import Classifier
from cmjax.metrics.dataset_features import in_words
from cmjax.metrics.registry import METRICS, too_few
from tests.in_process import do

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 2, 2, 1)).astype(np.uint8)
COV = np.diag([1.0, 2.0, 3.0, 4.0])


@pytest.fixture
def evaluator_of(monkeypatch, tmp_path):
    """metrics, reference -> the evaluator of 30 images, by a network whose features are the pixels."""
    network = FeatureNetwork(
        "dataset",
        "pixels",
        "mine",
        lambda images: {"features": images.reshape(len(images), -1) / 255, "probabilities": 1},
    )
    monkeypatch.setattr(evaluator, "dataset_network", lambda *_, **__: network)

    def evaluator_of(metrics, reference=None, *, num=30, held_out=20):
        sizes = {"train": 40, "test": held_out}
        data = DataSets("x", lambda split: ArraySource(PIXELS[: sizes[split]]))
        asked = Evaluation(metrics=metrics, features="dataset", weights=tmp_path)
        return evaluator.make_evaluator(asked, data, num=num, reference=reference, cache_dir=tmp_path / "cache")

    return evaluator_of


def values_of(made):
    return made.values(made.accumulate(lambda start, stop: PIXELS[start:stop], 30))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"mu": np.zeros(4), "sigma": COV},
            "has statistics of features of inception, and fd compares features of dataset",
        ),
        ({"mu": np.zeros(4), "sigma": COV, "network": "own"}, r"is of other features \(it does not say which\)"),
        ({"mu": np.zeros(4), "sigma": COV, "network": "own", "features": "abc"}, r"of other features \(abc\) than"),
        ({"mu": np.zeros(3), "sigma": COV[:3, :3]}, "its mean has 3 values, and dataset has 4 features"),
        ({"mu": np.full(4, np.nan), "sigma": COV}, "mu has values that are not finite, as of fewer than two"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.inf)}, "sigma has values that are not finite"),
        ({"mu": np.zeros(4), "sigma": COV - 3 * np.eye(4)}, "sigma is no covariance: it has negative variances"),
        ({"mu": np.zeros(4), "sigma": COV + np.eye(4, k=1)}, "sigma is no covariance: it is not symmetric"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \(0,\) and sigma \(0, 0\) are no mean and covariance"),
        ({"mu": np.zeros(4), "sigma": np.zeros(())}, "are no mean and covariance"),
        ({"mu": np.zeros(4), "sigma": COV.astype(complex)}, "sigma must be of real numbers, not complex128"),
        ({"mu": np.array(["a"] * 4), "sigma": COV}, "mu must be of real numbers, not <U1"),
        ({"mu": np.zeros(4)}, "has only one of mu and sigma"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(evaluator_of, tmp_path, arrays, message):
    named = {} if "inception" in message else {"network": "own", "features": "mine"}
    np.savez(tmp_path / "x.npz", **(arrays if "other features" in message else named | arrays))
    with pytest.raises(ConfigError, match=rf"--reference=.*x\.npz: .*{message}"):
        evaluator_of(("fd",), str(tmp_path / "x.npz"))


def test_statistics_name_their_features(evaluator_of, tmp_path):
    made = evaluator_of(("fd",))
    write_statistics(tmp_path / "own.npz", made.reference_statistics())
    assert read_statistics(tmp_path / "own.npz")["dataset"].key == "mine"
    again = evaluator_of(("fd", "kid"), str(tmp_path / "own.npz"))
    assert values_of(again)["fd"] == pytest.approx(values_of(made)["fd"], rel=1e-9)
    assert again.protocol["metrics"]["kid"]["reference"] == "own.npz; rows: 20 test images of x"
    with pytest.raises(ConfigError, match="is a file of statistics, which kid, pr cannot use: single images are comp"):
        evaluator_of(("kid", "pr"), str(tmp_path / "own.npz"))
    write_statistics(tmp_path / "theirs.pkl", {"inception": OfNetwork({"features": (np.zeros(4), COV)}, "key")})
    assert read_statistics(tmp_path / "theirs.pkl")["inception"].key == "key"


def test_a_metric_without_a_value_is_left_out(evaluator_of, tmp_path, caplog):
    huge = {"mu": np.full(4, 1e300), "sigma": COV, "network": "own", "features": "mine"}
    np.savez(tmp_path / "huge.npz", **huge)
    with np.errstate(over="ignore"):
        assert values_of(evaluator_of(("fd",), str(tmp_path / "huge.npz"))) == {}
    assert "fd is inf, and is left out" in caplog.text


@pytest.mark.parametrize("num", range(7))
def test_every_metric_has_a_value_of_as_few_images_as_it_says(num):
    rows = RNG.normal(size=(8, 3))
    outputs = {"features": rows, "spatial": rows, "rows": rows, "probabilities": np.full((8, 2), 0.5)}
    outputs["distances"] = np.ones(8)
    accumulators = [Accumulator(), Accumulator()]
    for accumulator in accumulators:
        accumulator.add({name: values[:num] for name, values in outputs.items()})
    for name, metric in METRICS.items():
        if too_few([name], num):
            assert f"{name} needs at least {metric.least} image" in too_few([name, "is"], num)
        else:
            assert all(np.isfinite(value) for value in metric.of(*accumulators).values()), name


def test_too_few_images_are_named_before_anything_is_drawn(evaluator_of, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--num=5: prdc needs at least 6 images, and there are 5"):
        evaluation_of_options(("fd", "prdc"), "dataset", None, num=5)
    assert evaluation_of_options(("fd", "prdc"), "dataset", None, num=6).num == 6
    with pytest.raises(ConfigError, match="pr needs at least 4 images, and there are 3 test images of x"):
        evaluator_of(("fd", "pr"), held_out=3)
    few = evaluator_of(("prdc",), "train", held_out=5)  # the real images beside are fewer than it needs
    assert few.of_real == {}
    assert values_of(few)["coverage"] > 0
    np.savez(tmp_path / "none.npz", images=digits("test").images[:0])
    with pytest.raises(ConfigError, match=r"--images=.*none\.npz: images must hold at least one example"):
        do("evaluate", "--config=digits_ct", f"--images={tmp_path / 'none.npz'}", "--metrics=fd,prdc")
    for num in (1, 5):
        np.savez(tmp_path / "few.npz", images=digits("test").images[:num])
        with pytest.raises(ConfigError, match=rf"--images=.*few\.npz: .*prdc needs at least 6 images, .* {num}$"):
            do("evaluate", "--config=digits_ct", f"--images={tmp_path / 'few.npz'}", "--metrics=fd,prdc")
    with pytest.raises(ConfigError, match=r"config\.metrics\.num=3: metrics need at least 6 samples"):
        do("--config=digits_ct", f"--workdir={tmp_path / 'run'}", "--config.metrics.num=3")
    with pytest.raises(ConfigError, match=r"config\.evaluate\.num=3: pr needs at least 4 images, and there are 3"):
        do("--config=digits_ct", f"--workdir={tmp_path / 'run'}", "--config.evaluate.every=10",
           "--config.evaluate.num=3", "--config.evaluate.metrics=pr")  # fmt: skip


def test_a_single_image_makes_no_pair():
    outputs = through(lambda params, images: {"distances": images[:, 0, 0, 0]}, {}, batch=2, pairs=True)
    assert outputs(np.zeros((1, 2, 2, 3), np.uint8))["distances"].shape == (0,)
    assert outputs(np.zeros((3, 2, 2, 3), np.uint8))["distances"].shape == (2,)


class Guesses(Classifier):
    """A classifier that gives so many of 100 images their label, by features of 8 dimensions."""

    def __init__(self, right):
        object.__setattr__(self, "right", right)

    def __call__(self, images):
        return np.zeros((len(images), 8))

    def accuracy(self, images, labels):
        return self.right


@pytest.mark.parametrize(
    ("right", "held_out", "words"),
    [
        (0.9, 40, ""),
        (0.642, 40, "an accuracy below 0.7: too weak to rank models by"),
        (0.9, 12, "12 images for a covariance of 8 features: too weak"),
        (0.642, 12, "an accuracy below 0.7 and 12 images for a covariance of 8 features: too weak to rank models by"),
    ],
)
def test_what_features_are_worth_stands_beside_their_metrics(right, held_out, words):
    said = in_words(Guesses(right), ArraySource(PIXELS[:held_out], np.zeros(held_out, int)))
    assert f"accuracy {right:.3f} on {held_out} held-out ones" in said
    assert (words in said) if words else ("weak" not in said)
    assert ("Have more labelled data, or measure by a published network" in said) == bool(words)


def test_samples_that_beat_training_images_say_that_the_metric_means_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "dataset_classifier", lambda *_, **__: Guesses(0.9))
    source = ArraySource(PIXELS, np.zeros(40, int))
    table = {"1-step": {"fd": 1.0}, "2-step": {"fd": 3.0}, "training images": {"fd": 2.0}, "fitted Gaussian": {"fd": 1}}
    said = comparison.about_metrics(table, source, source, cache_dir=tmp_path)
    assert said.startswith(
        "fd: features of a classifier of the training images, accuracy 0.900 on 40 held-out ones. 1-step: "
    )
    assert "2-step" not in said
    del table["1-step"]
    assert "below" not in comparison.about_metrics(table, source, source, cache_dir=tmp_path)


def test_metrics_of_a_folder_that_is_only_read_are_shown(evaluator_of, tmp_path, monkeypatch, caplog):
    def refused(path, content):
        raise PermissionError(30, "Read-only file system")

    for module in ("evaluation.results", "system.npz"):
        monkeypatch.setattr(f"cmjax.{module}.write_atomically", refused)
    setting = {"step": 1, "sampler": "1-step", "num": 30, "content": "k"}
    row = evaluate_once(
        tmp_path / "evaluation.jsonl", setting, evaluator_of(("fd",)), lambda start, stop: PIXELS[start:stop]
    )
    assert row["metrics"]["fd"] > 0
    assert "evaluation.jsonl cannot be written: Read-only file system" in caplog.text
    assert notes(row) == "fd: pixels, against 20 test images of x"
