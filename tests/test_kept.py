"""What is kept is of what it says: another model, another image or another data set makes it anew."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmjax.config.methods import read_model
from cmjax.data.base import ArraySource, Subset
from cmjax.data.folder import folder
from cmjax.data.on_demand import fingerprint
from cmjax.evaluation import accumulation
from cmjax.evaluation.accumulation import DataSets, accumulate_split
from cmjax.evaluation.evaluator import Evaluator
from cmjax.evaluation.networks import FeatureNetwork
from cmjax.evaluation.results import add_row, drop_rows_after, read_rows, row_there
from cmjax.evaluation.sweep import evaluate_once
from cmjax.generation import files, search
from cmjax.metrics.accumulator import Accumulator
from cmjax.metrics.registry import METRICS
from cmjax.plotting.plots import save_png
from cmjax.runs.trained import open_trained
from cmjax.runs.weights import write_model
from cmjax.runs.workdir import remove_later
from cmjax.system.content import content_key, files_key
from configs import digits_ct
from tests.in_process import do

PIXELS = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 1)).astype(np.uint8)


def make_run(folder, seed):
    """A run's folder of a network that is not trained, another one for each seed."""
    shutil.rmtree(folder, ignore_errors=True)
    config = digits_ct.get_config()
    config.net.width, config.net.depth = 16, 1
    params = read_model(config.to_dict(), None).init(jax.random.key(seed), (8, 8, 1))
    write_model(folder, config.to_dict(), (8, 8, 1), None, params, imported=None, option="")


def test_a_key_is_of_every_byte_and_of_nothing_else():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    other = array.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], 99)
    keys = [content_key(a) for a in (array, other, array.reshape(6, 4), array.astype(np.float64), array.tolist())]
    assert len(set(keys)) == 5
    assert content_key({"a": 1, "b": array}) == content_key({"b": jnp.asarray(array), "a": 1})
    assert content_key(np.asfortranarray(array)) == content_key(array)
    assert content_key(array.astype(jnp.bfloat16)) != content_key(other.astype(jnp.float16))
    assert content_key([array], []) != content_key([], [array])
    split = jax.device_put(array, jax.NamedSharding(jax.make_mesh((4,), ("x",)), jax.P("x")))
    assert content_key(split) == content_key(array)


def test_files_are_known_by_their_content(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"onetwo"), ("d", b"")):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (tmp_path / name for name in "abcd")
    keys = [files_key(files) for files in ([a, b], [b, a], [c], [c, d])]
    assert len(set(keys)) == 4
    a.rename(tmp_path / "renamed")
    assert files_key([tmp_path / "renamed", b]) == keys[0]


def test_a_fingerprint_is_of_every_example(tmp_path):
    changed, labels = PIXELS.copy(), np.arange(200) % 3
    changed[137, 2, 1, 0] ^= 1
    relabelled = np.where(np.arange(200) == 8, 0, labels)
    sources = [
        ArraySource(PIXELS), ArraySource(changed), ArraySource(PIXELS, labels), ArraySource(PIXELS, relabelled),
        Subset(ArraySource(PIXELS), np.arange(100)), Subset(ArraySource(PIXELS), np.arange(100, 200)),
    ]  # fmt: skip
    assert len(set(map(fingerprint, sources))) == len(sources)
    assert fingerprint(ArraySource(PIXELS.copy())) == fingerprint(sources[0])

    for i, image in enumerate(PIXELS[:40]):
        path = tmp_path / "a" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    kept, large = (folder(tmp_path / "a", "train", image_size=4, memory_limit_bytes=n) for n in (10**9, 0))
    before = fingerprint(kept)
    assert before == fingerprint(large)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert fingerprint(folder(tmp_path / "moved", "train", image_size=4)) == before
    Image.fromarray(PIXELS[50, ..., 0]).save(tmp_path / "a" / "class1" / "21.png")
    assert fingerprint(folder(tmp_path / "a", "train", image_size=4)) != before


def test_a_row_is_believed_while_its_content_is_the_same(tmp_path, caplog):
    protocol = {"version": 1, "uint8": "r", "metrics": {"fd": {"hash": "a"}}}
    row = {"step": 1, "sampler": "1-step", "num": 5, "content": "k", "metrics": {"fd": 1.0}, "protocol": protocol}
    setting = {name: row[name] for name in ("step", "sampler", "num", "content")}
    assert row_there([row], setting, protocol) == row
    assert not caplog.records
    assert row_there([row], setting | {"content": "l"}, protocol) is None
    assert "step 1, 1-step: the row that is there is of other parameters, and is made anew" in caplog.text
    assert row_there([row], setting, protocol | {"version": 2}) is None
    without = {name: value for name, value in row.items() if name != "content"}  # of code before there was one
    assert row_there([without], setting, protocol) is None

    path = tmp_path / "evaluation.jsonl"
    for one in (without, row | {"step": 2}, row, row | {"step": 3}, row | {"content": "l"}):
        add_row(path, one)
    assert [(one["step"], one["content"]) for one in read_rows(path)] == [(2, "k"), (3, "k"), (1, "l")]
    drop_rows_after(path, 2)
    assert [one["step"] for one in read_rows(path)] == [2, 1]


def test_a_training_that_goes_back_removes_what_was_made_of_later_steps(tmp_path):
    pixels = np.zeros((2, 2, 3), np.uint8)
    for name in ("samples/0000100-1-step.png", "samples/0000300-1-step.png", "samples/seed-0.png"):
        save_png(tmp_path / name, pixels)
    save_png(tmp_path / "gallery.png", pixels, checkpoint="300")
    for name, step in (("loss", 300), ("times", 100)):
        save_png(tmp_path / "diagnostics" / f"{name}.png", pixels)
        (tmp_path / "diagnostics" / f"{name}.json").write_text(json.dumps({"checkpoint": step}))
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 300}))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    remove_later(tmp_path, 300)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    remove_later(tmp_path, 200)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    kept = {"samples/0000100-1-step.png", "samples/seed-0.png", "diagnostics/times.png", "diagnostics/times.json"}
    assert left == kept


def test_parts_of_a_model_that_is_gone_are_sampled_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "PART", 4)
    asked = ("sample", f"--workdir={tmp_path / 'run'}", "--num=8")
    make_run(tmp_path / "run", seed=0)
    write, written = files.write_atomically, []

    def killed(path, content):
        if len(written) == 2:  # the settings and one part
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        do(*asked, f"--out={tmp_path / 'x.npz'}")
    monkeypatch.setattr(files, "write_atomically", write)
    make_run(tmp_path / "run", seed=1)
    do(*asked, f"--out={tmp_path / 'x.npz'}")
    assert "parts of other samples (parameters" in caplog.text
    do(*asked, f"--out={tmp_path / 'whole.npz'}")
    with np.load(tmp_path / "x.npz") as mixed, np.load(tmp_path / "whole.npz") as whole:
        np.testing.assert_array_equal(mixed["images"], whole["images"])


def test_times_are_of_one_model_and_of_its_data(tmp_path, monkeypatch, caplog):
    searched = []

    def found(score, grid, count, metric):
        searched.append(count)
        return [80.0, 0.1 * len(searched)], {}

    monkeypatch.setattr(search, "_search", found)
    monkeypatch.setattr(search, "score_along", lambda *_: None)

    def times():
        trained = open_trained(tmp_path / "run")
        return search.find_times(trained, trained.load(), 2)

    make_run(tmp_path / "run", seed=0)
    assert times() == times() == (80.0, 0.1)
    kept = (tmp_path / "run" / "times.json").read_text()
    make_run(tmp_path / "run", seed=1)
    (tmp_path / "run" / "times.json").write_text(kept)
    assert times() == (80.0, 0.2)
    assert "is of another model, and is made anew" in caplog.text
    monkeypatch.setattr(search, "fingerprint", lambda source: "of other images")
    assert times() == (80.0, pytest.approx(0.3))
    assert "is of another data, and is made anew" in caplog.text
    (tmp_path / "run" / "times.json").write_text("[1, 2")
    assert times() == (80.0, 0.4)

    def refused(path, content):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(search, "write_atomically", refused)
    (tmp_path / "run" / "times.json").unlink()
    assert times() == (80.0, 0.5)
    assert "another start searches again: Read-only file system" in caplog.text


def test_a_kept_reference_is_of_all_images(tmp_path, monkeypatch):
    network = FeatureNetwork("n", "", "", lambda images: {"features": images.reshape(len(images), -1)})
    changed, asked = PIXELS.copy(), []
    changed[:100] = 0
    accumulate_images = accumulation.accumulate_images
    monkeypatch.setattr(
        accumulation, "accumulate_images", lambda *args, **how: asked.append(1) or accumulate_images(*args, **how)
    )

    def mean(images):
        data = DataSets("x", lambda split: ArraySource(images))
        return accumulate_split(network, ("features",), data, "train", tmp_path)[0].statistics().mean.mean()

    assert mean(PIXELS) == mean(PIXELS.copy()) == pytest.approx(PIXELS.mean())
    assert len(asked) == 1
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"damaged")
    assert mean(PIXELS) == pytest.approx(PIXELS.mean())
    for row in range(100, 200):  # one image alone
        one = PIXELS.copy()
        one[row] = 255 - one[row]
        if row % 33 == 0:
            assert mean(one) == pytest.approx(one.mean())


def test_a_stopped_evaluation_goes_on_for_its_own_model_and_metrics_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulation, "PART", 50)
    monkeypatch.setattr(accumulation, "SAVE_SECONDS", -1)
    features = FeatureNetwork("n", "", "", lambda images: {"features": images.reshape(len(images), -1)})
    asked = []

    def evaluator(*metrics):
        needed = tuple(sorted({METRICS[metric].needs for metric in metrics}))
        real = Accumulator()
        real.add(features.outputs_for(PIXELS, needed))
        protocol = {"metrics": {metric: {"network": "n"} for metric in metrics}}
        return Evaluator({"n": features}, {"n": needed}, dict.fromkeys(metrics, "n"), {"n": real}, {}, protocol)

    def values(evaluator, content, stop=None):
        def images_of(start, end):
            asked.append(start)
            if start == stop:
                raise KeyboardInterrupt
            return PIXELS[start:end] // (2 if content == "b" else 1)

        setting = {"step": 1, "sampler": "1-step", "num": 100, "content": content}
        return evaluate_once(tmp_path / "evaluation.jsonl", setting, evaluator, images_of)["metrics"]

    for content, metrics in (("a", ("fd",)), ("b", ("fd",)), ("b", ("fd", "pr"))):
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            values(evaluator(*metrics), content, stop=50)
        assert asked == [0, 50]  # nothing of the one before
    asked.clear()
    both = values(evaluator("fd", "pr"), "b")
    assert asked == [50]
    (tmp_path / "evaluation.jsonl").unlink()
    assert values(evaluator("fd", "pr"), "b") == both
