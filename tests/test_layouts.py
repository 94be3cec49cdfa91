"""Layouts of folders: the classes and splits that a plain reading finds, or one line that refuses them."""

import json
import logging
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmjax.data.base import DataError
from cmjax.data.layout import read_split
from cmjax.data.splits import split_of


def make(root: Path, *files: str) -> Path:
    """A folder of files, each empty; "cat/5" are cat/0.png … cat/4.png."""
    for name in files:
        place, _, last = name.rpartition("/")
        names = [f"{i}.png" for i in range(int(last))] if last.isdecimal() else [last]
        (root / place).mkdir(parents=True, exist_ok=True)
        for one in names:
            (root / place / one).touch()
    return root


def read(root: Path) -> tuple[Counter, Counter]:
    """How many images of each class the two splits have; of the class None without classes."""
    counts = []
    for split in ("train", "test"):
        found = read_split(root, split)
        names = [None] * len(found.files) if found.labels is None else [found.class_names[i] for i in found.labels]
        counts.append(Counter(names))
    return counts[0], counts[1]


SPLITS = [
    (["train/cat/5", "train/dog/4", "val/cat/2", "val/dog/1"], {"cat": 5, "dog": 4}, {"cat": 2, "dog": 1}),
    (["training/cat/5", "testing/cat/2"], {"cat": 5}, {"cat": 2}),
    (["Train/cat/5", "Test/cat/2", "Valid/cat/3"], {"cat": 5}, {"cat": 2}),
    (["train/5", "validation/2", "dev/9"], {None: 5}, {None: 9}),
    (["train2017/5", "val2017/2"], {None: 5}, {None: 2}),
    (["mnist_train/cat/5", "mnist_test/cat/2"], {"cat": 5}, {"cat": 2}),
    (["train_images/5", "test_set/2", "annotations/a.json"], {None: 5}, {None: 2}),
    (["train/cat/5", "test/cat/2", "test/owl/2"], {"cat": 5}, {"cat": 2}),
    (["train/5", "test/cat/2"], {None: 5}, {None: 2}),
    (["train/5", "test/2", "preview.png"], {None: 5}, {None: 2}),
    (["train/cat/5", "val/cat/3", "test/2"], {"cat": 5}, {"cat": 3}),
]


@pytest.mark.parametrize(("files", "train", "test"), SPLITS)
def test_splits_are_found_by_their_names(tmp_path, files, train, test):
    assert read(make(tmp_path, *files)) == (train, test)


PARTS = [f"{i:05d}/img{1000 * i + j:08d}.png" for i in range(2) for j in range(50)]
CLASSES = [
    (["cat/90", "dog/90"], {"cat", "dog"}),
    (["train/cat/90", "train/dog/90"], {"cat", "dog"}),
    (["train/90", "car/90"], {"train", "car"}),
    (["valid/90", "invalid/90"], {"valid", "invalid"}),
    (["trains/90", "tests/90"], {"trains", "tests"}),
    (["cat/90", "dog/1", "owl/0"], {"cat", "dog"}),
    (["cat/90", ".ipynb_checkpoints/9", "__MACOSX/cat/9", ".git/9", "Thumbs.db", ".DS_Store"], {"cat"}),
    (["cat/90", "cat/.thumbnails/9"], {"cat"}),
    (["cat/90", "cat/small/9", "dog/9"], {"cat", "dog"}),
    (["Cat/90", "cat/9"], {"Cat", "cat"}),
    (["ca t/90", "ümläut/9", "猫/9", "a,b/9", "#1/9", "'/9"], {"ca t", "ümläut", "猫", "a,b", "#1", "'"}),
    (["90"], {None}),
    (["train/90"], {None}),
    (PARTS, {None}),
    ([f"{i:05d}/{i:05d}_{j:05d}.png" for i in range(2) for j in range(50)], {"00000", "00001"}),
]


@pytest.mark.parametrize(("files", "classes"), CLASSES)
def test_classes_are_the_subfolders(tmp_path, files, classes):
    """Each has something to train on, and together the splits have every image."""
    train, test = read(make(tmp_path, *files))
    assert set(train) == classes
    assert set(test) <= classes
    held = sum(test.values())
    assert 0 < held < 0.2 * (sum(train.values()) + held)
    shown = [
        path for path in tmp_path.rglob("*.png") if not any(p[0] in "._" for p in path.relative_to(tmp_path).parts)
    ]
    assert sum(train.values()) + held == len(shown)


REFUSED = [
    (["train/5", "val/2", "extra/2"], r'"train", "val" are splits by their names, and "extra" beside them not'),
    (["trainA/5", "trainB/5", "testA/2", "testB/2"], "holds several pairs of splits"),
    (["train/5", "training/5"], "two are named like the training split"),
    (["train/5", "train2/5", "test/2"], '"train", "train2" are both named like the training split'),
    (["test/5"], "none is to train on"),
    (["test/cat/5", "val/cat/5"], "none is to train on"),
    (["cat/train/5", "cat/test/5", "dog/train/5", "dog/test/5"], "cat: .* are splits within a subfolder"),
    (["set/train/5", "set/val/5"], "set: .*; give that folder as config.data.data_dir"),
    (["train/cat/5", "dog/5"], '"train" has the name of a split and subfolders of its own, beside "dog"'),
    (["train/0", "val/cat/5"], "train: holds no image files"),
    (["cat/5", "3"], r"0\.png: an image beside class subfolders"),
    (["train/cat/5", "train/3", "test/cat/1"], r"0\.png: an image beside class subfolders"),
    (["cat/a.txt", "dog/b.gif"], "holds no image files"),
]


@pytest.mark.parametrize(("files", "line"), REFUSED)
def test_what_can_be_read_in_several_ways_is_refused(tmp_path, files, line):
    with pytest.raises(DataError, match=line) as caught:
        read_split(make(tmp_path, *files), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["train/cat/5", "test/5"], "test: its images are in no classes, and those of .*train are"),
        (["train/cat/5", "test/owl/5"], "test: has none of the classes of .*train"),
        (["train/cat/5", "test/0"], "test: holds no image files"),
    ],
)
def test_a_held_out_split_that_does_not_fit_is_refused(tmp_path, files, line):
    make(tmp_path, *files)
    assert len(read_split(tmp_path, "train").files) == 5
    with pytest.raises(DataError, match=line):
        read_split(tmp_path, "test")


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["car/40", "train/40"], '"train" has the name of a split, and is taken as a class'),
        (["Cat/40", "cat/40"], '"Cat", "cat" are classes of their own, by letter case or blanks alone'),
        (["1/40", "2/40", "10/40"], "so that class 0 is the folder 1"),
        (["all/cat/40", "all/dog/40"], 'has one class subfolder, "all"; its label says nothing; name .*all for its 2'),
        (["cat/40", "cat/old/40", "dog/40"], 'the subfolders of "cat" are one class with it'),
        (["train/cat/40", "test/cat/40", "test/owl/40"], 'nothing of it to train on: "owl"'),
        ([*PARTS], "are parts of a numbered set and no classes"),
        (["train/40", "test/40", "val/40"], '"train" is trained on, and "test" held out; not read: "val"'),
    ],
)
def test_what_is_taken_for_what_is_logged_once(tmp_path, caplog, files, line):
    caplog.set_level(logging.INFO)
    read(make(tmp_path, *files))
    assert len([message for message in caplog.messages if re.search(line, message)]) == 1


def test_labels_of_dataset_tool_are_read(tmp_path):
    names = [f"{i // 10:05d}/img{i:08d}.png" for i in range(30)]
    make(tmp_path, *names)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[name, 1 + i % 3] for i, name in enumerate(names)]}))
    train, test = read(tmp_path)
    assert train + test == {"1": 10, "2": 10, "3": 10}
    assert read_split(tmp_path, "train").class_names == ("1", "2", "3")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": None}))
    assert set(read(tmp_path)[0]) == {None}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"labels": [["b.png", 0]]}', "has no label of a.png"),
        ('{"labels": [["a.png", [0, 1]]]}', r"the label of a.png is \[0, 1\], not a whole number"),
        ('{"labels": [["a.png", -1]]}', "the label of a.png is -1"),
        ('[["a.png", 0]]', "is not as EDM's dataset_tool writes it"),
        ("{", "is not as EDM's dataset_tool writes it"),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, content, line):
    (make(tmp_path, "a.png") / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=line):
        read_split(tmp_path, "train")


def test_links_are_followed_and_circles_end(tmp_path):
    make(tmp_path / "store", "x/20", "y/20", "z.png")
    root = make(tmp_path / "all", "dog/20")
    os.symlink("../store/x", root / "cat")
    os.symlink("../store/y", root / "owl")
    os.symlink("../../store/z.png", root / "dog" / "linked.png")
    for inner in (root / "dog" / "up", root / "dog" / "self"):
        os.symlink("." if inner.name == "self" else "../..", inner)
    os.symlink("loop", root / "loop")
    os.symlink("gone.png", root / "dog" / "broken.png")
    train, test = read(root)
    assert train + test == {"cat": 20, "dog": 22 + 41, "owl": 20}  # "up" leads to the store as well


def test_one_name_has_one_spelling(tmp_path):
    for form in ("NFC", "NFD"):
        make(tmp_path / unicodedata.normalize(form, "café"), "20", f"{form}.png")
    make(tmp_path, "tea/9")
    train, test = read(tmp_path)
    assert set(train) == {"café", "tea"}
    assert (train + test)["café"] == 42


def test_names_of_splits():
    train = ["train", "TRAIN", "training", "train_set", "train-images", "trainset", "train2014", "trn"]
    test = ["test", "Testing", "val", "valid", "validation", "dev", "eval", "val_256", "holdout", "held-out", "testset"]
    assert {split_of(name) for name in train} == {("train", "")}
    assert {split_of(name) for name in test} == {("test", "")}
    assert [split_of(name) for name in ("trains", "contest", "value", "device", "restrain", "valley", "cat")] == [
        None
    ] * 7


NAMES = st.sampled_from(
    ["cat", "dog", "Cat", "1", "2", "10", "01", "ü", "a b", "x.png", "猫", "train", "val", "test", "dev", "training",
     ".cache", "__MACOSX", "00000", "images"]
)  # fmt: skip
TREES = st.dictionaries(NAMES, st.integers(0, 12) | st.dictionaries(NAMES, st.integers(0, 12), max_size=3), max_size=4)


def flat(tree, place=()):
    """(path, number of images) of each folder of a tree."""
    for name, inner in tree.items():
        if isinstance(inner, dict):
            yield from flat(inner, (*place, name))
        else:
            yield (*place, name), inner


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(tree=TREES, loose=st.sampled_from([0, 0, 0, 3]), held=st.sampled_from(["", "train", "val"]))
def test_any_folder_ends_in_a_plain_reading_or_in_a_line(tree, loose, held):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for place, count in flat(tree, (held,) if held else ()):
            make(root, "/".join((*place, str(count))))
        make(root, str(loose))
        counts = {place: count for place, count in flat(tree) if count and not any(p[0] in "._" for p in place)}
        tops = {place[0] for place in counts}
        named = any(split_of(name) for place in counts for name in place)
        try:
            (train, test), line = read(root), ""
        except DataError as error:
            (train, test), line = (Counter(), Counter()), str(error)
        together = train + test
        if line:
            assert "\n" not in line
            assert str(root) in line
            assert loose or held or named or sum(counts.values()) <= 60, line
            return
        if named:
            assert sum(together.values()) <= sum(counts.values()) + loose
            return
        assert set(test) <= set(train)
        assert set(train) == (tops or {None}), (train, tops)
        expected = Counter()
        for place, count in counts.items():
            expected[place[0]] += count
        assert together == (expected or Counter({None: loose}))


def test_labels_are_those_of_the_images(tmp_path):
    make(tmp_path, "b/9", "a/9", "c/1")
    for split in ("train", "test"):
        found = read_split(tmp_path, split)
        assert found.class_names == ("a", "b", "c")
        assert [found.class_names[i] for i in found.labels] == [file.parent.name for file in found.files]
        assert found.labels.dtype == np.int32
