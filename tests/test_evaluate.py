"""--mode=evaluate as a user runs it, on an untrained network for the digits, and its parts."""

import json
import pickle
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmjax.cli import evaluate as evaluate_mode
from cmjax.cli import train
from cmjax.cli.command_line import parse
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.data.batches import edm_uint8, to_uint8, truncated_uint8
from cmjax.data.sources import digits, to_path
from cmjax.evaluation import accumulation, sweep
from cmjax.evaluation.accumulation import accumulate_images
from cmjax.evaluation.networks import PUBLISHED, FeatureNetwork, Published, published_network
from cmjax.evaluation.results import read_rows, row_there
from cmjax.interop.statistics import read_statistics, write_statistics
from cmjax.metrics.classifier import perceptron
from cmjax.metrics.damage import STRENGTHS, damaged
from cmjax.metrics.functional import frechet_distance
from cmjax.runs.weights import write_model
from cmjax.system.unpickle import UnsafeFile
from cmjax.training.loop import in_turn
from cmjax.training.state import TrainState
from configs import digits_ct

FIELDS = {"step", "checkpoint", "average", "sampler", "times", "evaluations", "num", "seed", "guidance", "metrics"}
FIELDS |= {"real", "protocol", "seconds", "content"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs: one of a network that is not trained."""
    folder = tmp_path_factory.mktemp("runs")
    config = digits_ct.get_config()
    config.net.width, config.net.depth = 16, 1
    params = read_model(config.to_dict(), None).init(jax.random.key(0), (8, 8, 1))
    write_model(folder / "x", config.to_dict(), (8, 8, 1), None, params, imported=None, option="")
    return folder


@pytest.fixture
def evaluate(runs):
    def evaluate(*arguments):
        module, options = parse(["--mode=evaluate", f"--workdir={runs / 'x'}", *arguments])
        module.start(options)
        return read_rows(runs / "x" / "evaluation.jsonl")

    return evaluate


def test_settings_are_evaluated_once_and_by_their_samples(runs, evaluate, monkeypatch, capsys):
    asked = ("--num=100", "--metrics=fd,pr,is", "--times=80", "--times=80,0.8")
    rows = evaluate(*asked)
    assert [row["sampler"] for row in rows] == ["1-step", "2-step"]
    assert all(row.keys() == FIELDS for row in rows)
    assert rows[1]["times"] == [80.0, 0.8]
    assert rows[0]["real"]["fd"] < rows[0]["metrics"]["fd"]
    protocol = rows[0]["protocol"]["metrics"]["fd"]
    assert (protocol["network"], protocol["reference"]) == ("dataset", "297 test images of digits")
    assert "accuracy 0.9" in protocol["of"]
    assert (runs / "x" / "evaluation.png").exists()
    assert "real images" in capsys.readouterr().out

    parse_out = runs / "one.npz"
    module, options = parse(["sample", f"--workdir={runs / 'x'}", "--num=100", "--times=80", f"--out={parse_out}"])
    module.start(options)
    real, held_out = (digits(split).gather(np.arange(len(digits(split)))) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(1500)
    features = perceptron(real["image"][order], real["label"][order], cache_dir=runs / ".cache")
    expected = frechet_distance(features(held_out["image"]), features(np.load(parse_out)["images"]))
    assert rows[0]["metrics"]["fd"] == pytest.approx(expected, rel=1e-6)

    monkeypatch.setattr(sweep.Evaluator, "accumulate", lambda *_, **__: pytest.fail("drawn again"))
    assert len(evaluate(*asked)) == 2
    assert len(evaluate("--num=100", "--metrics=pr", "--times=80")) == 2  # a part of what is there


def test_images_of_others_and_files_of_statistics(runs, evaluate, tmp_path):
    real = digits("train").gather(np.arange(300))["image"]
    np.savez(tmp_path / "x.npz", arr_0=real)
    for i, image in enumerate(real):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:04d}.png")
    saved = tmp_path / "own.npz"
    of_file = evaluate("--metrics=fd", f"--images={tmp_path / 'x.npz'}", f"--save_reference={saved}")[-1]
    of_folder = evaluate("--metrics=fd", f"--images={tmp_path}")[-1]
    assert of_file["num"] == of_folder["num"] == 300
    assert of_file["metrics"] == of_folder["metrics"]
    again = evaluate("--metrics=fd", f"--images={tmp_path / 'x.npz'}", f"--reference={saved}")[-1]
    assert again["metrics"]["fd"] == pytest.approx(of_file["metrics"]["fd"], rel=1e-9)
    hashes = [row["protocol"]["metrics"]["fd"]["hash"] for row in (of_file, again)]
    assert hashes[0] == hashes[1]
    floats = tmp_path / "floats.npz"
    np.savez(floats, images=real / np.float32(127.5) - 1)
    assert evaluate("--metrics=fd", f"--images={floats}")[-1]["metrics"] == of_file["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics=fid"], r"InceptionV3 has no weights in .*: put pt_inception-2015-12-05-6726825d.pth or .*, from "),
        (["--metrics=fdi"], r"--metrics=\('fdi',\): fdi is none of fid, sfid"),
        (["--checkpoint=7"], r"--checkpoint=7: must be newest, all, or some of 0"),
        (["--steps=9"], r"--solver and --steps are for teachers"),
        (["--reference=none.npz"], r"--reference=none.npz: must be train, test or a file"),
        (["--images=none.npz"], r"--images=none.npz: no such file"),
        (["--average=3"], r"--average=3: must be a number from 0; .* keeps 1 average"),
        (["--std=0.1"], r"keeps no power averages"),
    ],
)
def test_mistakes_are_named(evaluate, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate("--num=20", "--metrics=fd", f"--weights={tmp_path}", *arguments)


def test_a_stopped_accumulation_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulation, "PART", 10)
    monkeypatch.setattr(accumulation, "SAVE_SECONDS", -1)
    rows, asked = np.random.default_rng(0).normal(size=(45, 1, 1, 3)), []
    network = FeatureNetwork("n", "", "", lambda images: {"features": images.reshape(len(images), 3)})
    needed = {"n": ("features", "rows")}

    def images_of(start, stop):
        asked.append(start)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return rows[start:stop]

    with pytest.raises(KeyboardInterrupt):
        accumulate_images({"n": network}, needed, images_of, 45, keep=tmp_path / "keep.npz")
    accumulator = accumulate_images({"n": network}, needed, images_of, 45, keep=tmp_path / "keep.npz")["n"]
    assert asked == [0, 10, 20, 20, 30, 40]
    np.testing.assert_allclose(accumulator.statistics().cov, np.cov(rows.reshape(45, 3), rowvar=False), rtol=1e-12)
    assert not list(tmp_path.iterdir())


def test_a_published_network_sees_every_image_as_rgb_once(tmp_path, monkeypatch):
    def apply(params, images):
        return {"features": params * jnp.mean(images.astype(jnp.float32), axis=(1, 2))}

    row = Published("a mean", (("a.npz", "b.npz"),), "nowhere", lambda a, b: jnp.asarray(2.0), apply, batch=2)
    monkeypatch.setitem(PUBLISHED, "inception", row)
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).write_text(name)
    images = np.random.default_rng(0).integers(0, 256, (19, 4, 4, 1), np.uint8)  # two batches on four devices, and 3
    found = published_network("inception", tmp_path).outputs_for(images, ("features",))["features"]
    expected = 2 * np.repeat(images.mean(axis=(1, 2)), 3, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    # images and a file of statistics are enough, without a run
    np.savez(tmp_path / "x.npz", images=images)
    np.savez(tmp_path / "real.npz", mu=expected.mean(axis=0) + np.eye(3)[0], sigma=np.cov(expected, rowvar=False))
    given = [f"--images={tmp_path / 'x.npz'}", f"--reference={tmp_path / 'real.npz'}", f"--weights={tmp_path}"]
    module, options = parse(["--mode=evaluate", "--metrics=fid", *given])
    module.start(options)
    (row,) = read_rows(tmp_path / "evaluation.jsonl")
    assert row["metrics"]["fid"] == pytest.approx(1, rel=1e-4)
    with pytest.raises(ConfigError, match=r"has no rows of inception to compare with; name the data"):
        module.start(parse(["--mode=evaluate", "--metrics=fid,kid", "--features=inception", *given])[1])


def test_the_rules_for_pixels_differ_by_truncation():
    level = np.arange(255)
    for part, rounded in ((0.3, level), (0.7, level + 1)):
        x = (level + part) / 127.5 - 1
        np.testing.assert_array_equal(edm_uint8(x), rounded)
        np.testing.assert_array_equal(to_uint8(x), rounded)
        np.testing.assert_array_equal(truncated_uint8(x), level)
    assert edm_uint8(np.array([-2.0, 2.0])).tolist() == truncated_uint8(np.array([-2.0, 2.0])).tolist() == [0, 255]


def test_files_of_statistics_of_the_peers(tmp_path):
    mean, cov = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
    np.savez(tmp_path / "edm.npz", mu=mean, sigma=cov)
    np.savez(tmp_path / "ref.npz", ref_mu=mean, ref_sigma=cov)
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=cov, mu_s=mean[:2], sigma_s=cov[:2, :2], arr_0=np.zeros(4))
    kinds = {"fid": {"mu": mean, "sigma": cov}, "fd_dinov2": {"mu": mean, "sigma": cov}}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(kinds))
    for name in ("edm.npz", "ref.npz", "adm.npz", "edm2.pkl"):
        np.testing.assert_array_equal(read_statistics(tmp_path / name)["inception"].pairs["features"][1], cov)
    assert read_statistics(tmp_path / "adm.npz")["inception"].pairs["spatial"][0].shape == (2,)
    found = read_statistics(tmp_path / "edm2.pkl")
    write_statistics(tmp_path / "again.pkl", found)
    again = pickle.loads((tmp_path / "again.pkl").read_bytes())
    np.testing.assert_array_equal(again["fd_dinov2"]["sigma"], cov)
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises((UnsafeFile, ValueError), match=r"bad.pkl"):
        read_statistics(tmp_path / "bad.pkl")
    np.savez(tmp_path / "none.npz", x=mean)
    with pytest.raises(ValueError, match=r"needs mu and sigma, and has x"):
        read_statistics(tmp_path / "none.npz")


def test_metrics_notice_damage_in_order(runs):
    train = digits("train").gather(np.random.default_rng(0).permutation(1500))  # the order of the cached classifier
    features = perceptron(train["image"], train["label"], cache_dir=runs / ".cache")
    whole, half = features(train["image"][:750]), train["image"][750:]
    for kind, strengths in STRENGTHS.items():
        found = [
            frechet_distance(whole, features(damaged(kind, half, train["label"][750:], strength)))
            for strength in strengths
        ]
        assert all(less < more for less, more in pairwise(found)), kind


def test_a_run_is_evaluated_as_it_trains(runs):
    config = digits_ct.get_config()
    config.net.width, config.net.depth, config.batch_size, config.steps = 16, 1, 16, 5
    config.samples.every, config.metrics.num, config.log.tensorboard = 0, 0, False
    config.report = False
    config.evaluate.update({"every": 2, "num": 60, "metrics": ("fd",)})
    train.run(config.to_dict(), to_path(runs / "evaluated"))
    rows = [json.loads(line) for line in (runs / "evaluated" / "evaluation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["evaluations"]) for row in rows] == [(s, e) for s in (2, 4, 5) for e in (1, 2)]
    assert all(row.keys() == FIELDS for row in rows)


def test_callbacks_take_turns():
    seen, state = [], TrainState(jnp.zeros((), jnp.int32), {}, (), jnp.array(True))
    callback, every = in_turn([(lambda state, step: seen.append(("a", step)), 4),
                               (lambda state, step: seen.append(("b", step)), 6),
                               (lambda state, step: seen.append(("c", step)), 0)], lambda *_: None)  # fmt: skip
    for step in range(every, 13, every):
        callback(state, step)
    assert seen == [("a", 4), ("b", 6), ("a", 8), ("a", 12), ("b", 12)]


def test_a_run_is_evaluated_from_python_in_one_line(runs):
    (row,) = evaluate_mode.run(str(runs / "x"), metrics=["prdc_pixels"], times=["80"], num=60)
    values = ["precision_pixels", "recall_pixels", "density_pixels", "coverage_pixels"]
    assert list(row["metrics"]) == list(row["real"]) == values
    rule = row["protocol"]["metrics"]["prdc_pixels"]
    assert (rule["network"], rule["of"], rule["reference"]) == ("pixels", "pixels", "297 test images of digits")
    assert row["metrics"]["coverage_pixels"] < 0.5 < row["real"]["coverage_pixels"]


def test_rows_of_earlier_versions_are_used(evaluate, runs, monkeypatch):
    asked = ("--num=60", "--metrics=fd,kid", "--times=80", "--features=own")
    rows = evaluate(*asked)
    path = runs / "x" / "evaluation.jsonl"
    path.write_text(path.read_text().replace('"network": "dataset"', '"network": "own"'))
    monkeypatch.setattr(sweep.Evaluator, "accumulate", lambda *_, **__: pytest.fail("sampled again"))
    assert evaluate(*asked) == evaluate(*asked[:3], "--features=dataset") == rows


def test_a_row_of_another_protocol_is_another_row():
    row = {"step": 1, "num": 5, "metrics": {"fd": 1.0}, "protocol": {"uint8": "r", "metrics": {"fd": {"hash": "a"}}}}
    protocol = {"uint8": "r", "metrics": {"fd": {"hash": "a"}}}
    assert row_there([row], {"step": 1, "num": 5}, protocol) == row
    assert row_there([row], {"step": 2, "num": 5}, protocol) is None
    assert row_there([row], {"step": 1, "num": 5}, {"uint8": "r", "metrics": {"fd": {"hash": "b"}}}) is None
