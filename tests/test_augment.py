"""EDM's augmentations: against recorded numbers and a slow reference, what must stay as it is, and through training."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax import Times
from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.data import augment as augmenting
from cmjax.data.augment import COLOR, GEOMETRY, PAIRS, Amounts, edm, label_size, labels, sample_amounts
from cmjax.data.batches import preprocess
from cmjax.data.warp import SYM6, warp
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.train_step import inputs_of
from cmjax.system.mesh import batch_sharding, make_mesh
from cmjax.training.method import Method
from cmjax.training.optimizer import make_optimizer
from cmjax.training.step import compile_train_step, init_state, make_method_step, prepare_inputs

IMAGES = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32)
apply = jax.jit(augmenting.apply)
KINDS = {"edm": ("x_flip", "y_flip", *GEOMETRY), "all": Amounts._fields}


def pipe(probabilities):
    return jax.jit(partial(augmenting.augment, probabilities=probabilities))


@pytest.fixture(scope="module")
def recorded(shared):
    """The numbers recorded from NVIDIA's pipe; parity/README.md says what each is."""
    return np.load(shared / "parity" / "augment.npz")


def recorded_draws(recorded, kind, dtype):
    """The uniform and Gaussian numbers of the record, in the order in which they were drawn, as what was done."""
    raw = iter([recorded[name].astype(float) for name in sorted(recorded) if name.startswith(f"{kind}_draw")])
    probability = {"edm": 0.6, "all": 0.8}[kind]
    amounts = {}
    for name in KINDS[kind]:
        x = next(raw).reshape(-1, 8).T if name in ("shift", "translation") else next(raw).reshape(8, 1)
        if name == "shift":
            x = np.rint((2 * x - 1) * 4) / 4
        elif name in ("rotation", "hue"):
            x = (2 * x - 1) * np.pi
        angle = (2 * next(raw).reshape(8, 1) - 1) * np.pi if name == "stretch" else None
        happens = next(raw).reshape(8, 1) < (1 if (kind, name) == ("edm", "x_flip") else probability)
        if name == "stretch":
            x = np.concatenate([x, np.where(next(raw).reshape(8, 1) < 0.5, angle, 0)], axis=1)
        amounts[name] = jnp.asarray(np.where(happens, x, 0).squeeze().astype(dtype))
    return Amounts(**amounts)


@pytest.mark.parametrize("kind", ["edm", "all"])
def test_recorded_draws_give_the_recorded_images_and_labels(recorded, kind):
    images = recorded["images"].transpose(0, 2, 3, 1)
    amounts = recorded_draws(recorded, kind, np.float32)
    np.testing.assert_allclose(labels(amounts), recorded[f"{kind}_labels"], atol=3e-7)
    out = np.asarray(apply(jnp.asarray(images), amounts)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out, recorded[f"{kind}_out"], atol=2e-5)  # both in float32


def test_the_recorded_filter_is_ours_and_orthogonal(recorded):
    np.testing.assert_array_equal(SYM6, recorded["sym6"])
    np.testing.assert_allclose([np.dot(SYM6[2 * k :], SYM6[: 12 - 2 * k]) for k in range(6)], np.eye(6)[0], atol=1e-12)


def slow_warp(image, inverse):
    """`warp` of one image as its definition reads: zeros put between samples, full convolutions, tents for weights."""
    height, width = image.shape[:2]
    fine = np.pad(image, [(height - 1, height - 1), (width - 1, width - 1), (0, 0)], mode="reflect")
    for axis in (0, 1):
        stuffed = np.insert(fine, np.arange(1, fine.shape[axis]), 0, axis=axis)
        fine = np.apply_along_axis(lambda x: np.convolve(x, SYM6)[5:-5], axis, stuffed)
    up = np.diag([2.0, 2.0, 1.0])
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    inverse = half @ up @ inverse @ np.linalg.inv(up) @ np.linalg.inv(half)
    rows, columns = 2 * (height + 6), 2 * (width + 6)
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5 - np.array([[rows], [columns]]) / 2
    x, y, _ = inverse @ np.stack([x, y, np.ones_like(x)])
    tents = [
        np.maximum(0, 1 - np.abs(place[:, None] + size / 2 - 0.5 - np.arange(size)))
        for place, size in zip((y, x), fine.shape[:2], strict=True)
    ]
    out = np.einsum("pi,ijc,pj->pc", tents[0], fine, tents[1], optimize=True).reshape(rows, columns, -1)
    for axis in (0, 1):
        out = np.apply_along_axis(lambda x: np.correlate(np.pad(x, 5), SYM6, "valid")[::2][3:-3], axis, out)
    return out


def test_warp_is_its_definition(x64):
    images = np.random.default_rng(0).uniform(-1, 1, (6, 8, 11, 2))
    inverses = np.random.default_rng(1).normal(np.eye(3), 0.6, (6, 3, 3))
    inverses[:, :2, 2] *= 4
    inverses[:, 2] = [0, 0, 1]
    expected = [slow_warp(image, inverse) for image, inverse in zip(images, inverses, strict=True)]
    np.testing.assert_allclose(jax.jit(warp)(images, inverses), expected, atol=1e-12)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, -2), (-7, 0)])
def test_whole_pixels_move_without_a_change(x64, right, down):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 11, 3))
    inverse = np.eye(3) + np.array([[0, 0, -right], [0, 0, -down], [0, 0, 0]])
    reflected = np.pad(images, [(0, 0), (7, 7), (10, 10), (0, 0)], mode="reflect")
    expected = reflected[:, 7 - down : 15 - down, 10 - right : 21 - right]
    # The outermost reflected pixels lack neighbours to be interpolated from, and the wavelet has twelve digits.
    got = jax.jit(warp)(images, np.tile(inverse, (2, 1, 1)))
    np.testing.assert_allclose(got, expected, atol=1e-10)


def everything(probability):
    return dict.fromkeys(Amounts._fields, probability)


@pytest.mark.parametrize("probabilities", [edm(probability=0), everything(0.0)])
def test_nothing_happens_at_probability_zero(probabilities):
    images, told = pipe(probabilities)(IMAGES, jax.random.key(0))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(told, np.zeros((16, label_size(probabilities))))


def test_only_what_the_labels_tell_of_is_changed():
    images, told = pipe(edm(probability=0.2))(IMAGES, jax.random.key(0))
    plain, mirrored = (np.asarray(told == row).all(1) for row in (jnp.zeros((1, 9)), jnp.eye(9)[:1]))
    np.testing.assert_array_equal(images[plain], IMAGES[plain])
    np.testing.assert_array_equal(images[mirrored], IMAGES[mirrored, :, ::-1])
    changed = (np.asarray(images) != IMAGES).any((1, 2, 3))
    np.testing.assert_array_equal(changed, ~plain)
    assert min(plain.sum(), mirrored.sum(), (~plain & ~mirrored).sum()) > 0


def test_pixels_moved_whole_keep_their_values():
    def moved(**amounts):
        return np.asarray(
            apply(jnp.asarray(IMAGES), Amounts(**{k: jnp.asarray(v, jnp.float32) for k, v in amounts.items()}))
        )

    ones = np.ones(16)
    np.testing.assert_array_equal(moved(x_flip=ones), IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(moved(y_flip=ones), IMAGES[:, ::-1])
    for turns in range(4):
        np.testing.assert_array_equal(moved(quarter_turns=turns * ones), np.rot90(IMAGES, turns, axes=(1, 2)))
    reflected = np.pad(IMAGES, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(moved(shift=np.tile([1, -1], (16, 1))), reflected[:, :8, :8])


def test_a_result_is_the_samples_own_whatever_the_batch(x64):
    amounts = sample_amounts(jax.random.key(3), IMAGES.shape, probabilities=everything(0.7))
    together = apply(jnp.asarray(IMAGES, float), amounts)
    for i in (0, 5):
        alone = apply(jnp.asarray(IMAGES[i : i + 1], float), jax.tree.map(lambda x, i=i: x[i : i + 1], amounts))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-12)


def test_grey_images_are_colored_images_without_color():
    grey = jnp.asarray(IMAGES[..., :1])
    amounts = sample_amounts(jax.random.key(3), grey.shape, probabilities=dict.fromkeys(COLOR, 0.7))
    np.testing.assert_allclose(
        apply(jnp.tile(grey, (1, 1, 1, 3)), amounts), jnp.tile(apply(grey, amounts), 3), atol=2e-6
    )


def test_draws_have_their_distributions():
    num = 20_000
    amounts = sample_amounts(jax.random.key(0), (num, 32, 16, 3), probabilities=everything(0.5))
    told = labels(amounts)
    assert told.shape == (num, 19)
    happened = {name: np.asarray(x).reshape(num, -1)[:, 0] for name, x in amounts._asdict().items()}
    for name in set(Amounts._fields) - {"shift", "quarter_turns"}:
        rate = 0.25 if "flip" in name else 0.5
        np.testing.assert_allclose(np.mean(happened[name] != 0), rate, atol=0.02, err_msg=name)
    for name in ("scale", "stretch", "translation", "brightness", "contrast", "saturation"):
        x = happened[name][happened[name] != 0]
        np.testing.assert_allclose([x.mean(), x.std(), (x**4).mean()], [0, 1, 3], atol=0.25, err_msg=name)
    for name in ("rotation", "hue"):
        x = happened[name][happened[name] != 0]
        np.testing.assert_allclose(np.histogram(x, 4, (-np.pi, np.pi))[0] / len(x), 0.25, atol=0.02)
    np.testing.assert_allclose(
        np.bincount(happened["quarter_turns"].astype(int)) / num, [0.625] + [0.125] * 3, atol=0.02
    )
    assert set(np.round(np.unique(happened["shift"]) * 16 * 0.125, 5)) == {-2, -1, 0, 1, 2}
    np.testing.assert_allclose(np.mean(np.asarray(amounts.stretch)[:, 1] != 0), 0.25, atol=0.02)
    independent = np.corrcoef(np.asarray(told)[:, [0, 1, 6, 8, 11, 12, 16, 18]].T)  # one of each pair
    np.testing.assert_allclose(independent, np.eye(8), atol=0.03)


def test_draws_of_one_augmentation_do_not_depend_on_the_others():
    some = sample_amounts(jax.random.key(1), IMAGES.shape, probabilities=edm(probability=0.5))
    more = sample_amounts(jax.random.key(1), IMAGES.shape, probabilities=everything(0.5))
    for name in KINDS["edm"][1:]:
        np.testing.assert_array_equal(getattr(some, name), getattr(more, name))


def test_one_program_without_communication_serves_all_draws():
    mesh = make_mesh()
    compiled = (
        jax.jit(
            partial(augmenting.augment, probabilities=edm(probability=0.5)), in_shardings=(batch_sharding(mesh), None)
        )
        .lower(IMAGES, jax.random.key(0))
        .compile()
    )
    text = compiled.as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
    for seed in (0, 1):
        key = jax.random.key(seed)
        spread = compiled(jax.device_put(IMAGES, batch_sharding(mesh)), key)
        whole = pipe(edm(probability=0.5))(IMAGES, key)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), spread, whole)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: edm(probability=1.5), r"the probability of y_flip must lie in \[0, 1\], got 1.5"),
        (lambda: apply_to(IMAGES, {"x_flop": 0.5}), "x_flop must be one of x_flip, y_flip"),
        (lambda: apply_to(IMAGES, {}), "at least one of x_flip"),
        (lambda: apply_to(IMAGES, {"hue": float("nan")}), "the probability of hue"),
        (
            lambda: apply_to(IMAGES[:, :5], {"quarter_turns": 0.5}),
            r"quarter_turns: images must be square, got \(5, 8\)",
        ),
        (lambda: apply_to(IMAGES[..., :2], {"contrast": 0.5}), "1 or 3 channels, got 2"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def apply_to(images, probabilities):
    return pipe(probabilities)(images, jax.random.key(0))


def train(steps, *, parts=1, state=None):
    """Steps of a model that predicts each image's mirror label from its left half, which tells it."""

    def loss(model, params, key, batch):
        is_mirrored = (jnp.mean(batch.x0[:, :, :4], axis=(1, 2, 3)) < 0).astype(jnp.float32)
        label = batch.conditions["augment"]
        return (label @ params["w"] - is_mirrored) ** 2 + jnp.sum(jnp.abs(label[:, 0] - is_mirrored)) * 100

    method = Method(loss, lambda key, batch_size, step: Times(jnp.ones(batch_size)))

    images = {"image": np.tile(np.sign(3.5 - np.arange(8, dtype=np.float32))[None, None, :, None], (16, 8, 1, 3))}
    optimizer = make_optimizer(
        optax.identity(), learning_rate=lambda step: 0.1, clip_norm=0.0, weight_decay=0.0, average_rates={}
    )
    mesh = make_mesh()
    state = state or init_state({"w": jnp.zeros(1)}, optimizer, mesh)
    step_fn = make_method_step(
        None, method, optimizer, seed=3, grad_accumulation=parts,
        prepare=partial(
            prepare_inputs, preprocess=partial(preprocess, horizontal_flip=False),
            augment=partial(augmenting.augment, probabilities={"x_flip": 1.0}),
        ),
    )  # fmt: skip
    compiled = compile_train_step(step_fn, state, {}, images, mesh)
    losses = []
    for _ in range(steps):
        state, metrics = compiled(state, {}, images)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_labels_reach_the_objective_beside_their_images():
    whole, losses = train(6)
    assert 0 < max(losses) < 1  # no label at the wrong image: each would cost 100
    assert len(set(losses)) == 6  # each step amounts anew
    in_parts, _ = train(6, parts=4)
    np.testing.assert_allclose(whole.params["w"], in_parts.params["w"], rtol=1e-5)
    resumed, again = train(3, state=train(3)[0])
    assert again == losses[3:]
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])


def config_of(recipe, variant="", **fields):
    config = importlib.import_module(f"configs.{recipe}").get_config(*filter(None, [variant]))
    config.data.data_dir = "" if config.data.name == "digits" else "somewhere"
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config.to_dict()


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        ("cifar_edm", {"net__augment_dim": 0}, r"config.data.augment='edm.*config.net.augment_dim=0: set that to 9"),
        ("cifar_edm", {"data__horizontal_flip": True}, "config.data.horizontal_flip=True: config.data.augment mirrors"),
        ("cifar_edm", {"data__augment": "edm"}, r"config.data.augment='edm': edm needs probability"),
        ("cifar_edm", {"data__augment": "edm(probability=2.0)"}, r"probability must be at most 1, not 2.0"),
        ("cifar_edm", {"data__augment": "ada(probability=0.1)"}, "must be one of edm, meanflow"),
        ("cifar_cd", {"data__augment": "edm(probability=0.1)"}, "a consistency model is given images as"),
        ("cifar_ct", {"data__augment": "edm(probability=0.1)"}, "a consistency model is given images as"),
        ("digits_edm", {"data__augment": "edm(probability=0.1)"}, "config.net.name='mlp' has no input"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused_by_name(recipe, fields, message):
    with pytest.raises(ConfigError, match=message):
        read_run(config_of(recipe, **fields), data_there=False)


@pytest.mark.parametrize(("recipe", "size"), [("cifar_edm", 9), ("cifar_meanflow", 6)])
def test_the_recipes_network_takes_the_labels(recipe, size):
    run = read_run(config_of(recipe, "tiny"), data_there=False)
    model = run.make_model(10)
    step_fn = make_method_step(
        model.function, run.method, run.optimizer, prepare=inputs_of(run, model), seed=0,
    )  # fmt: skip
    shapes = parameter_shapes(model.module, (32, 32, 3))
    assert shapes["embedding"]["augment"]["kernel"].shape[0] == size
    state = jax.eval_shape(
        lambda: init_state(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), run.optimizer, make_mesh())
    )
    batch = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8)}
    assert jax.eval_shape(step_fn, state, {}, batch)[1]["loss"].shape == ()


@pytest.mark.parametrize("variant", ["", "tiny"])
def test_a_student_starts_from_a_teacher_that_takes_labels(variant):
    teacher, student = (
        parameter_shapes(read_run(config_of(name, variant), data_there=False).make_model(10).module, (32, 32, 3))
        for name in ("cifar_edm", "cifar_cd")
    )
    assert jax.tree.map(lambda x: x.shape, teacher) == jax.tree.map(lambda x: x.shape, student)


def test_augmentations_are_where_the_choices_are():
    assert label_size(edm(probability=0.12)) == 9
    assert label_size(augmenting.meanflow(probability=0.12)) == 6
    assert label_size(everything(1.0)) == 19
    assert set(PAIRS) < set(Amounts._fields)
