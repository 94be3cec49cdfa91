"""Classes by their names: in a run's record, where a label is chosen, and between runs."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from cmjax.cli.command_line import parse
from cmjax.config.fields import ConfigError
from cmjax.config.recipes import load_recipe
from cmjax.core.model import BoundModel
from cmjax.data.base import ArraySource, DataError
from cmjax.data.sources import arrays
from cmjax.generation.arguments import edit_labels, read_label
from cmjax.generation.interpolation import interpolate
from cmjax.runs.about_data import classes_of
from cmjax.runs.classes import class_of, in_words
from cmjax.runs.dependencies import check_classes
from cmjax.runs.record import read_record, write_record
from cmjax.runs.trained import open_trained

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), np.uint8)
NAMES = ["cat", "10", "2", "Owl"]


def of(names, conditional=True) -> Any:
    record = {"class_names": names, "num_classes": len(names)} if names else {"num_classes": 3}
    model = SimpleNamespace(class_conditional=conditional)
    count = record["num_classes"] if conditional else None
    return SimpleNamespace(record=record, model=model, num_classes=count, class_names=tuple(names or "012"))


@pytest.mark.parametrize(
    ("label", "number"),
    [("cat", 0), ("0", 0), (0, 0), ("1", 1), ("10", 1), ("Owl", 3), ("name:2", 2), ("number:2", 2), (2, 2), ("2", 2)],
)
def test_a_class_is_named_or_numbered(label, number):
    assert class_of(label, NAMES) == number


@pytest.mark.parametrize(
    ("label", "names", "line"),
    [
        ("dog", NAMES, r"--label=dog: the model has 4 classes, numbered from 0: 0 cat, 1 10, 2, 3 Owl"),
        ("owl", NAMES, r"\(did you mean Owl\?\)"),
        ("4", NAMES, "--label=4: the model has 4 classes"),
        (-1, NAMES, "--label=-1"),
        ("", NAMES, "--label=: "),
        ("1", ["1", "2"], 'class 1 is "2", and "1" is the name of class 0: write --label=number:1 or --label=name'),
    ],
)
def test_a_class_that_is_none_or_two_is_refused(label, names, line):
    with pytest.raises(ConfigError, match=line):
        class_of(label, names)


def test_classes_are_listed_where_one_must_be_chosen():
    with pytest.raises(ConfigError, match="--label is missing: the model has 4 classes, numbered from 0: 0 cat, 1 10"):
        edit_labels([], 3, of(NAMES))
    with pytest.raises(ConfigError, match="--label=cat: the model has no classes"):
        read_label("cat", of(NAMES, conditional=False))
    assert edit_labels(["Owl"], 3, of(NAMES))["label"].tolist() == [3, 3, 3]
    assert edit_labels(["cat", 1], 2, of(NAMES))["label"].tolist() == [0, 1]
    assert in_words([f"c{i}" for i in range(1000)]).endswith("19 c19, … 999 c999")


def record(folder, names, *, conditional=True):
    config = load_recipe("digits_classes" if conditional else "digits_edm").to_dict()
    classes = {"class_names": names, "class_counts": [5] * len(names)}
    return write_record(folder, config, (8, 8, 1), len(names), classes=classes)


def test_a_renamed_class_does_not_swap_labels(tmp_path):
    assert record(tmp_path / "x", ["b", "c"]) == []
    with pytest.raises(
        ConfigError, match='trained with classes of other names: class 0 is "b" there, and "a" in these'
    ):
        record(tmp_path / "x", ["a", "b"])
    assert read_record(tmp_path / "x")["class_names"] == ["b", "c"]
    with pytest.raises(ConfigError, match=r"\[8, 8, 1\] in 2 classes, and these are \[8, 8, 1\] in 3 classes"):
        record(tmp_path / "x", ["a", "b", "c"])
    assert record(tmp_path / "x", ["b", "c"]) == []
    assert open_trained(tmp_path / "x").class_names == ("b", "c")
    record(tmp_path / "y", ["b", "c"], conditional=False)
    assert record(tmp_path / "y", ["a", "b"], conditional=False) == [
        'data: class 0 is "b" there, and "a" in these data'
    ]


def test_a_record_without_names_goes_on(tmp_path):
    record(tmp_path, ["b", "c"])
    kept = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in kept.items() if not k.startswith("class_")}))
    assert open_trained(tmp_path).class_names == ("0", "1")
    assert record(tmp_path, ["a", "b"]) == []


def test_the_classes_of_another_run_are_those_of_the_data():
    source = ArraySource(PIXELS, np.arange(60) % 2, class_names=("a", "b"))
    check_classes(of(["a", "b"]), source, "x")
    check_classes(of(["0", "1"]), source, "x")  # numbers are no names
    check_classes(of(["c", "d"], conditional=False), source, "x")
    with pytest.raises(ConfigError, match='x: its labels mean other classes: class 1 is "c" there, and "b" in these'):
        check_classes(of(["a", "c"]), source, "x")
    with pytest.raises(ConfigError, match="x: it was trained with 4 classes, and the data have 2"):
        check_classes(of(NAMES), source, "x")


@pytest.mark.parametrize("limit", [10**9, 0])
@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (np.arange(60) % 3, None, ("0", "1", "2")),
        (np.arange(60) % 3 + 1, None, ("1", "2", "3")),
        (np.arange(60) % 2 * 999_999, None, ("0", "999999")),
        (np.arange(60) % 3, ["ant", "bee", "cow"], ("ant", "bee", "cow")),
        (np.arange(60) % 2 * 2, ["ant", "bee", "cow"], ("ant", "cow")),
    ],
)
def test_labels_of_arrays_have_no_gaps_and_names(tmp_path, caplog, labels, names, classes, limit):
    more = {} if names is None else {"class_names": np.array(names)}
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=labels, **more)
    for split in ("train", "test"):
        source = arrays(tmp_path / "x.npz", split, memory_limit_bytes=limit)
        said = classes_of(source)
        assert said["class_names"] == list(classes)
        assert sum(said["class_counts"]) == len(source)
        batch = source.gather(np.arange(len(source)))
        for image, label in zip(batch["image"], batch["label"], strict=True):
            place = int(np.flatnonzero((image == PIXELS).all((1, 2, 3)))[0])
            assert classes[label] == (str(labels[place]) if names is None else names[labels[place]])
    gaps = int(labels.max()) + 1 > len(classes)
    assert ["numbered anew" in message for message in caplog.messages] == [True] * gaps


def test_every_class_has_something_to_train_on(tmp_path):
    labels = np.arange(60) // 2
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=labels)
    train, test = (arrays(tmp_path / "x.npz", split) for split in ("train", "test"))
    assert min(classes_of(train)["class_counts"]) == 1
    assert len(train) + len(test) == 60
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=np.arange(60))
    assert len(arrays(tmp_path / "x.npz", "train")) == 60
    with pytest.raises(DataError, match="holds no examples to compare with"):
        arrays(tmp_path / "x.npz", "test")


@pytest.mark.parametrize("names", [np.array(["a"]), np.array(["a", "a"]), np.array([1, 2]), np.array([["a", "b"]])])
def test_names_that_do_not_fit_are_refused(tmp_path, names):
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=np.arange(60) % 2, class_names=names)
    with pytest.raises(DataError, match=r"class_names|names of classes"):
        arrays(tmp_path / "x.npz", "train")


def test_between_two_classes_estimates_are_mixed():
    def by_class(params, x, t, label):
        return x / t * 0 + label.astype(float).reshape(-1, 1, 1, 1)

    flow_map = BoundModel({}, by_class, (2, 2, 1), 0.002, 80.0, "consistency")
    ends = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
    way = interpolate(flow_map, ends, 5, time=80.0, conditions={"label": np.array([1, 3])})
    np.testing.assert_allclose(way[:, 0, 0, 0], [1, 1.5, 2, 2.5, 3], atol=1e-6)


def test_moved_data_are_named_without_a_recipe(tmp_path):
    config = load_recipe("digits_edm").to_dict()
    config["data"] |= {"name": "folder", "data_dir": "/gone"}
    write_record(tmp_path, config, (8, 8, 1), None)
    _, options = parse(["gallery", f"--workdir={tmp_path}", "--config.data.data_dir=/here"])
    assert options.data_dir == "/here"
    assert open_trained(tmp_path, data_dir=options.data_dir).record["config"]["data"]["data_dir"] == "/here"
    assert open_trained(tmp_path).record["config"]["data"]["data_dir"] == "/gone"
    with pytest.raises(ConfigError, match=r"--config\.seed: of which recipe"):
        parse(["gallery", f"--workdir={tmp_path}", "--config.data.data_dir=/here", "--config.seed=3"])
