"""Editing and the gallery from the command line's side: images in, strips out, and what is said of wrong input."""

import contextlib

import jax
import numpy as np
import pytest
from PIL import Image

from cmjax.cli import edit, exporting, gallery, importing, report, sample
from cmjax.cli.command_line import parse
from cmjax.config.fields import ConfigError
from cmjax.core.editing import edit as core_edit
from cmjax.core.editing import inpainting
from cmjax.core.model import BoundModel
from cmjax.core.oracles import gaussian_flow_map
from cmjax.data.batches import to_uint8
from cmjax.generation import arguments, editing, interpolation, sampling
from cmjax.generation.files import write_strip
from cmjax.generation.interpolation import find_ends, interpolate
from cmjax.generation.keys import keys_of
from cmjax.interop.keys import Foreign
from cmjax.nets.adapter import init_params
from cmjax.nets.mlp import MLP
from cmjax.runs.weights import write_model

SHAPE = (8, 8, 3)
FLAGS = {"seed": 0, "patch": 4, "sigma": None, "add_noise": False, "margin": 0.25, "clip": True}


def make_run(workdir, *, kind="consistency", num_classes=0, guided=False):
    module = MLP(width=16, depth=1, num_classes=num_classes, guided=guided)
    params = init_params(module, jax.random.key(0), SHAPE)
    foreign = Foreign(module, params, SHAPE, kind, "none")
    config, imported = importing._config(foreign), {"from": "a test", "licence": "none"}
    write_model(workdir, config, SHAPE, num_classes or None, params, imported=imported, option="--workdir")
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "b.png")
    Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8)).save(folder / "large.jpg")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    tall = np.zeros((20, 10), np.uint8)
    tall[:10] = 255
    Image.fromarray(tall).save(folder / "tall.png")
    Image.merge("LA", [Image.new("L", (8, 8), 255), Image.fromarray(mask)]).save(folder / "clear.png")
    Image.new("L", (8, 8), 255).save(folder / "white.png")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    return folder


def run(workdir, task, images, out, **changes):
    times = "10" if task == "interpolation" else "10,1"
    flags = {"mask": None, "times": times, "num": 1, "seeds": None, "label": None} | FLAGS | changes
    edit.run(workdir, task=task, images=images, out=str(out), **flags)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize(
    ("task", "names", "cells"),
    [
        ("inpainting", ["a.png"], 3),
        ("outpainting", ["a.png"], 3),
        ("colorization", ["large.jpg"], 3),
        ("super_resolution", ["a.png"], 3),
        ("strokes", ["a.png"], 2),
        ("blending", ["a.png", "b.png"], 4),
        ("denoising", ["a.png"], 3),
        ("interpolation", None, 1),
        ("interpolation", ["a.png", "b.png"], 3),
    ],
)
def test_every_task_writes_its_strip_and_its_result(workdir, folder, tmp_path, task, names, cells, caplog):
    caplog.set_level("INFO")
    images = [str(folder / name) for name in names] if names else None
    mask = str(folder / "mask.png") if task in ("inpainting", "blending") else None
    run(workdir, task, images, tmp_path / "x.png", mask=mask, sigma=0.5, add_noise=True)
    assert pixels(tmp_path / "x.png").shape == (64 + 4, cells * 66 + 2, 3)
    assert pixels(tmp_path / "x-result.png").shape == SHAPE
    said = "large.jpg: 20x30 pixels, cropped to its middle 20x20 and resized to the model's 8x8"
    assert (said in caplog.text) == (task == "colorization")


def test_known_pixels_come_back_as_they_were(workdir, folder, tmp_path):
    mask, a, b = str(folder / "mask.png"), str(folder / "a.png"), str(folder / "b.png")
    run(workdir, "inpainting", [a], tmp_path / "x.png", mask=mask, num=2)
    one, two = pixels(tmp_path / "x-result-0.png"), pixels(tmp_path / "x-result-1.png")
    for result in (one, two):
        np.testing.assert_array_equal(result[:, :4], pixels(a)[:, :4])
    assert np.abs(one - two)[:, 4:].max() > 0
    run(workdir, "blending", [a, b], tmp_path / "y.png", mask=mask)
    np.testing.assert_array_equal(pixels(tmp_path / "y-result.png")[:, :4], pixels(a)[:, :4])
    run(workdir, "super_resolution", [a], tmp_path / "z.png")
    means = [pixels(path).reshape(2, 4, 2, 4, 3).mean((1, 3)) for path in (a, tmp_path / "z-result.png")]
    assert np.abs(means[0] - means[1]).max() < 20  # up to what clipping to black and white takes away


def gaussian_model(flow_map=None):
    """f(x, t) of data N(0.1, 0.25), or another."""

    def exact(params, x, t):
        return gaussian_flow_map(x, t, 0.002, mean=0.1, variance=0.25)

    return BoundModel({}, flow_map or exact, SHAPE, 0.002, 80.0, "consistency")


def left_half():
    mask = np.zeros((1, 8, 8, 1), np.float32)
    mask[:, :, :4] = 1
    return mask


def test_each_image_has_its_result():
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    options = editing.TaskSettings(mask=left_half())
    made = editing.edit_images(gaussian_model(), images, "inpainting", options, (10.0, 1.0))
    np.testing.assert_array_equal(to_uint8(made.originals), images)
    np.testing.assert_array_equal(made.results[:, :, :4], made.originals[:, :, :4])
    np.testing.assert_array_equal(made.degraded[:, :, :4], made.originals[:, :, :4])
    alone = editing.edit_images(gaussian_model(), images[:1], "inpainting", options, (10.0, 1.0))
    np.testing.assert_allclose(alone.results, made.results[:1], atol=1e-6)
    pairs = editing.edit_images(gaussian_model(), images, "blending", options, (10.0, 1.0))
    assert len(pairs.originals) == 4
    assert len(pairs.degraded) == len(pairs.results) == 2
    np.testing.assert_array_equal(pairs.results[:, :, :4], pairs.originals[0::2, :, :4])
    np.testing.assert_array_equal(pairs.degraded[:, :, 4:], pairs.originals[1::2, :, 4:])


def test_a_grey_image_is_shown_as_it_is():
    grey = jax.numpy.asarray(np.linspace(-1, 1, 5, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 1, 3)))
    shown = editing._colorization(grey, (1.0,), editing.TaskSettings()).degraded
    np.testing.assert_allclose(shown, grey, atol=1e-6)


def test_labels_go_with_their_images():
    def by_label(params, x, t, label):
        return 0 * x + 0.1 * label[:, None, None, None]

    images, labels = np.zeros((3, *SHAPE), np.uint8), np.array([5, 0, 7])
    options = editing.TaskSettings(mask=left_half(), sigma=1.0, label={"label": labels})
    for task in ("inpainting", "denoising"):
        made = editing.edit_images(gaussian_model(by_label), images, task, options, (10.0, 1.0))
        np.testing.assert_allclose(made.results[:, 0, 7, 0], 0.1 * labels, atol=1e-6, err_msg=task)


@pytest.mark.parametrize(("clip", "expected"), [(True, 1.0), (False, 3.0)])
def test_estimates_are_clipped_unless_not_asked(clip, expected):
    options = editing.TaskSettings(mask=left_half(), clip=clip)
    beyond = gaussian_model(lambda params, x, t: 0 * x + 3)
    made = editing.edit_images(beyond, np.zeros((1, *SHAPE), np.uint8), "inpainting", options, (10.0, 1.0))
    np.testing.assert_array_equal(made.results[:, :, 4:], expected)


def test_interpolation_between_images_begins_and_ends_with_them():
    # From data of that mean and variance: latents of typical norm make them.
    data = 0.1 + 0.5 * np.random.default_rng(0).standard_normal((2, *SHAPE)).clip(-1.7, 1.7)
    images = ((data + 1) * 127.5).round().astype(np.uint8)
    ends = find_ends(gaussian_model(), images, time=80.0, seed=0, conditions={})
    exact = ((ends.images - 0.1) * ((0.25 + 80.0**2) / (0.25 + 0.002**2)) ** 0.5 + 0.1) / 80.0
    np.testing.assert_allclose(ends.latents, exact, atol=0.01)
    assert ends.errors.max() < 0.005
    way = interpolate(gaussian_model(), ends.latents, 5, time=80.0, conditions={})
    errors = np.sqrt(np.mean((way[[0, -1]] - ends.images) ** 2, (1, 2, 3)))
    np.testing.assert_allclose(errors, ends.errors, rtol=0.01)
    assert abs(way[2].std() - 0.5) < 0.05


def test_what_interpolation_found_is_logged(workdir, folder, tmp_path, capsys):
    a, b = str(folder / "a.png"), str(folder / "b.png")
    run(workdir, "interpolation", [a, b], tmp_path / "x.png", times=None, num=3)
    assert f"{a}: found again with an error of " in capsys.readouterr().out
    strip = pixels(tmp_path / "x.png")
    assert strip.shape[1] == 5 * 66 + 2
    for cell, name in ((0, a), (4, b)):
        shown = strip[2 + 4 : 66 : 8, 2 + 66 * cell + 4 : 66 * (cell + 1) : 8]
        np.testing.assert_array_equal(shown, pixels(name))


@pytest.mark.parametrize(
    ("task", "names", "changes", "said"),
    [
        ("painting", ["a.png"], {}, "--task=painting: must be one of inpainting"),
        ("inpainting", ["a.png"], {}, "--mask is missing"),
        ("inpainting", ["a.png"], {"mask": "white.png"}, "all white"),
        ("inpainting", ["a.png"], {"mask": "none.png"}, "--mask=.*cannot be read"),
        ("colorization", ["broken.png"], {}, "broken.png cannot be read"),
        ("colorization", None, {}, "1 image must be given"),
        ("blending", ["a.png"], {"mask": "mask.png"}, "2 images must be given"),
        ("super_resolution", ["a.png"], {"patch": 3}, "--patch=3: must be at least 2, and divide the model's 8x8"),
        ("denoising", ["a.png"], {}, "--sigma is missing"),
        ("denoising", ["a.png"], {"sigma": 100.0}, r"--sigma=100.0: must lie in \[0.002, 80\]"),
        ("inpainting", ["a.png"], {"mask": "tall.png"}, "10x20 pixels; it must have the size of the image, 8x8, or"),
        ("outpainting", ["a.png"], {"margin": 0.0}, "--margin=0: must be above 0"),
        ("outpainting", ["a.png"], {"margin": 0.03}, "--margin=0.03: adds no pixel to the model's 8x8"),
        ("super_resolution", ["a.png"], {"patch": 1}, "--patch=1: must be at least 2"),
        ("interpolation", None, {"times": "10,1"}, "--times=10,1: interpolation is one evaluation"),
        ("colorization", ["a.png"], {"label": 1}, "the model has no classes"),
        ("colorization", ["a.png"], {"times": "1,2"}, "times must descend"),
        ("interpolation", None, {"seeds": ["1"]}, "--seeds=1"),
        ("interpolation", ["a.png"], {}, "2 images must be given"),
        ("interpolation", ["a.png", "b.png"], {"seeds": ["1", "2"]}, "--seeds and --image"),
    ],
)
def test_wrong_input_is_named(workdir, folder, tmp_path, task, names, changes, said):
    changes = {key: str(folder / value) if key == "mask" else value for key, value in changes.items()}
    images = [str(folder / name) for name in names] if names else None
    with pytest.raises(ConfigError, match=said):
        run(workdir, task, images, tmp_path / "x.png", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "model", "how"),
    [
        ((480, 640), (28, 28), "cropped to its middle 480x480 and resized to the model's 28x28"),
        ((480, 480), (28, 28), "resized to the model's 28x28"),
        ((28, 40), (28, 28), "cropped to its middle 28x28"),
        ((30, 10), (8, 16), "cropped to its middle 10x5 and resized to the model's 16x8"),
        ((1, 1), (8, 8), "resized to the model's 8x8"),
        ((8, 8), (8, 8), ""),
    ],
)
def test_how_a_image_is_fitted_is_logged_width_first(size, model, how):
    assert arguments.how_fitted(size, model) == how


def test_a_mask_has_the_size_of_the_image_or_of_the_models(folder):
    cropped = arguments.read_mask(str(folder / "tall.png"), SHAPE, [(20, 10), (8, 8)])
    np.testing.assert_array_equal(cropped[0, :, 4, 0], [1, 1, 1, 1, 0, 0, 0, 0])  # the middle 10 of 20 rows
    np.testing.assert_array_equal(arguments.read_mask(str(folder / "mask.png"), SHAPE, [(20, 10)]), left_half())
    np.testing.assert_array_equal(arguments.read_mask(str(folder / "clear.png"), SHAPE, []), left_half())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "--task is missing: one of inpainting"),
        ("--task=strokes --mask=m.png", "--mask: only --task=inpainting, --task=blending; this is strokes"),
        ("--task=strokes --patch=4", "--patch: only --task=super_resolution"),
        ("--task=denoising --noclip", "--noclip: only .*; this is denoising"),
        ("--task=denoising --times=80", "--times: only "),
        ("--task=denoising --sigma=1 --seed=1", "--seed: denoising has no random part"),
        ("--task=denoising --sigma=1 --num=2", "--num: denoising has no random part"),
        ("--task=interpolation --clip", "--clip: only "),
        ("--task=interpolation --seeds=1,2 --seed=1", "--seed: interpolation without images"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(flags, said):
    module, options = parse(["--mode=edit", "--workdir=nowhere", *flags.split()])
    with pytest.raises(ConfigError, match=said):
        module.start(options)


@pytest.mark.parametrize(
    "flags", ["--task=denoising --sigma=1 --seed=1 --add_noise", "--task=strokes --times=9 --noclip"]
)
def test_flags_of_the_task_are_taken(flags):
    module, options = parse(["--mode=edit", "--workdir=nowhere", *flags.split()])
    with pytest.raises(ConfigError, match="nowhere is not a run's folder"):
        module.start(options)


def test_results_of_an_earlier_edit_do_not_stay(tmp_path, caplog):
    caplog.set_level("INFO")
    path, black = tmp_path / "x[1].png", np.zeros((3, *SHAPE), np.float32)
    others = ["x[1]-result-old.png", "x[1]-result-01.png", "x1-result.png", "x[1]-result-7.png"]
    for name in others:
        (tmp_path / name).touch()
    write_strip(path, {"result": black}, black, [tmp_path / others[-1]])
    assert {file.name for file in tmp_path.iterdir()} == {
        path.name,
        *(f"x[1]-result-{i}.png" for i in range(3)),
        *others,
    }
    write_strip(path, {"result": black[:1]}, black[:1], [tmp_path / others[-1]])
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "x[1]-result.png", *others}
    assert "removed 3 results of an earlier edit" in caplog.text


def test_an_edit_does_not_write_over_its_own_image(workdir, tmp_path):
    image = tmp_path / "x-result.png"
    with pytest.raises(ConfigError, match=r"would write over .*x-result\.png"):
        run(workdir, "strokes", [str(image)], tmp_path / "x.png")


def test_many_edits_are_sampled_in_equal_parts_and_watched(monkeypatch):
    monkeypatch.setattr(sampling, "PIXELS_AT_ONCE", 1)  # then 16 on each of four devices
    images, traced, watched = np.random.default_rng(0).integers(0, 256, (70, *SHAPE), np.uint8), [], []

    def exact(params, x, t):
        traced.append(x.shape)
        return gaussian_flow_map(x, t, 0.002, mean=0.1, variance=0.25)

    def watch(total):
        watched.append(total)
        return contextlib.nullcontext(lambda done, text: watched.append(done))

    model, options = gaussian_model(exact), editing.TaskSettings(mask=left_half(), clip=False)
    made = editing.edit_images(model, images, "inpainting", options, (10.0, 1.0), watch)
    assert traced == [(36, *SHAPE)]
    assert watched == [140, 36, 72, 106, 140]
    keys = jax.random.wrap_key_data(jax.numpy.asarray(keys_of(0, np.arange(70))))
    operator, originals = inpainting(jax.numpy.asarray(left_half())), jax.numpy.asarray(made.originals)
    expected = core_edit(gaussian_model(), keys, originals, operator, times=(10.0, 1.0))
    np.testing.assert_allclose(made.results, expected, atol=1e-6)


def test_teachers_do_not_edit_and_classes_must_be_told(folder, tmp_path):
    teacher = make_run(tmp_path / "teacher", kind="denoiser")
    with pytest.raises(ConfigError, match="diffusion teacher"):
        run(teacher, "colorization", [str(folder / "a.png")], tmp_path / "x.png")
    with pytest.raises(ConfigError, match="consistency model"):
        gallery.run(teacher, images=None, out=None, seed=0, times=None)
    conditional = make_run(tmp_path / "conditional", num_classes=3)
    with pytest.raises(ConfigError, match="--label is missing: the model has 3 classes"):
        run(conditional, "colorization", [str(folder / "a.png")], tmp_path / "x.png")
    run(conditional, "colorization", [str(folder / "a.png")], tmp_path / "x.png", label=2)


@pytest.mark.slow
def test_a_network_that_takes_the_scale_of_guidance_is_named_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(interpolation, "STEPS", 1)
    guided = make_run(tmp_path / "guided", num_classes=3, guided=True)
    both = [str(folder / name) for name in ("a.png", "b.png")]
    for task, names in [("colorization", both[:1]), ("denoising", both[:1]), ("interpolation", both)]:
        run(guided, task, names, tmp_path / "x.png", label=2, sigma=0.5, num=2)
    gallery.run(guided, images=both, out=str(tmp_path / "g.png"), seed=0, times="10,1")


def test_a_gallery_has_a_row_for_each_task(workdir, folder, tmp_path, monkeypatch, capsys):
    traced, step = [], editing.edit_step
    monkeypatch.setattr(editing, "edit_step", lambda *args, **kwargs: traced.append(args) or step(*args, **kwargs))
    with pytest.raises(ConfigError, match="--image is missing"):
        gallery.run(workdir, images=None, out=None, seed=0, times=None)
    both = [str(folder / name) for name in ("a.png", "b.png")]
    gallery.run(workdir, images=both, out=str(tmp_path / "g.png"), seed=0, times="10,1")
    height, width, _ = pixels(tmp_path / "g.png").shape
    assert height == 58 + 8 * 66 + 2
    assert width > 12 * 66 + 3 * 14
    assert ", of model; original | degraded | result" in capsys.readouterr().out
    assert len(traced) == len(editing.TASKS)  # compiled once for each


def test_every_mode_is_one_line_of_python(workdir, folder, tmp_path):
    pytest.importorskip("bokeh")
    sample.run(str(workdir), num=2, out=str(tmp_path / "x.npz"))
    edit.run(str(workdir), task="colorization", images=[str(folder / "a.png")], out=str(tmp_path / "e.png"))
    gallery.run(str(workdir), images=[str(folder / "a.png")], out=str(tmp_path / "g.png"), times="10")
    exporting.run(str(workdir), out=str(tmp_path / "w.safetensors"))
    importing.run(str(tmp_path / "w.safetensors"), str(tmp_path / "back"))
    report.run([str(workdir)], out=str(tmp_path / "r.html"))
    names = {"x.npz", "e.png", "e-result.png", "g.png", "w.safetensors", "back", "r.html"}
    assert names <= {path.name for path in tmp_path.iterdir()}
