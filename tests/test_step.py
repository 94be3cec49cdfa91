"""The train step and its optimizer: averages, accumulation, meshes, and what happens at a loss that is not finite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax import Model
from cmjax.core import curricula, distances, ema_rates, losses, pairs, paths, weightings
from cmjax.core.preconditioning import consistency
from cmjax.system import mesh
from cmjax.system.mesh import make_mesh
from cmjax.training import step as train_step
from cmjax.training.average_rates import ema, fraction_of_first, half_life, power
from cmjax.training.method import Method
from cmjax.training.optimizer import averages, constant_schedule, cosine_schedule, make_optimizer, track_averages
from cmjax.training.step import compile_train_step, init_state, make_method_step, prepare_inputs

CURRICULUM = curricula.square_root_growth(s0=2, s1=6, total_steps=8)
MU = ema_rates.scheduled_rate(mu0=0.9, curriculum=CURRICULUM)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (16, 4, 4, 1)).astype(np.float32)
BATCH = {"image": IMAGES}


def linear_net(params, x, c_noise, *, key=None):
    flat = x.reshape(len(x), -1)
    return (flat @ params["w"] + params["b"][None] + c_noise[:, None] * params["t"][None]).reshape(x.shape)


def linear_params():
    w = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32) / 4
    return {"w": jnp.asarray(w), "b": jnp.zeros(16), "t": jnp.zeros(16)}


MODEL = Model(linear_net, paths.ve, partial(consistency, sigma_data=0.5, t_min=0.002))
CT = Method(
    partial(losses.ct, distance=partial(distances.pseudo_huber, c=0.03), weight=weightings.uniform),
    pairs.grid_pairs(CURRICULUM, t_min=0.002, t_max=80.0, rho=7.0),
    target_rate=MU,
)


def adam(**rates):
    return make_optimizer(
        optax.scale_by_adam(), learning_rate=lambda step: 1e-2, clip_norm=1.0, weight_decay=0.0, average_rates=rates
    )


def run(steps, *, method=CT, optimizer=None, fsdp=1, parts=1, batches=None, skip_nonfinite=0, state=None):
    optimizer = optimizer or adam(target=MU, ema0=lambda step: 0.9)
    mesh = make_mesh(fsdp=fsdp)
    state = state or init_state(linear_params(), optimizer, mesh)
    step_fn = make_method_step(
        MODEL, method, optimizer, prepare=lambda batch, key: (batch["image"], {}), seed=3, grad_accumulation=parts,
        schedules={"num_scales": CURRICULUM}, skip_nonfinite=skip_nonfinite,
    )  # fmt: skip
    compiled = compile_train_step(step_fn, state, {}, BATCH, mesh)
    records = []
    for k in range(steps):
        state, metrics = compiled(state, {}, BATCH if batches is None else batches[k])
        records.append(jax.device_get(metrics))
    return state, records


def test_averages_follow_their_rates_over_updated_parameters():
    tx = optax.chain(optax.sgd(0.5), track_averages({"target": MU}))
    params = {"a": jnp.array([1.0, -2.0])}
    state = tx.init(params)
    expected = np.array([1.0, -2.0])
    for k in range(8):
        updates, state = tx.update({"a": jnp.array([0.3, 0.1])}, state, params)
        params = optax.apply_updates(params, updates)
        mu = float(MU(k))
        expected = mu * expected + (1 - mu) * np.asarray(params["a"])
    np.testing.assert_allclose(averages(state)["target"]["a"], expected, rtol=1e-6)


def test_a_slow_average_reaches_parameters_that_have_settled():
    """At rate .99995 rounding to float32 alone would stop it within 6e-4 of them."""
    rate, updates = 0.99995, 100_000
    track = track_averages({"slow": lambda step: jnp.asarray(rate)})
    start = {"w": jnp.linspace(0.3, 0.9, 64), "none": jnp.zeros(2)}
    settled = jax.tree.map(lambda leaf: leaf * (1 + 3e-4), start)

    zeros = jax.tree.map(jnp.zeros_like, settled)

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(0, updates, lambda _, state: track.update(zeros, state, settled)[1], state)

    average = run(track.init(start)).averages["slow"]
    closed = (average["w"] - start["w"]) / (settled["w"] - start["w"])
    np.testing.assert_allclose(closed, 1 - rate**updates, atol=2e-3)
    np.testing.assert_array_equal(average["none"], 0)


def test_the_averages_do_not_share_memory_with_the_parameters():
    state, _ = run(1)
    leaves = jax.tree.leaves((state.params, averages(state.opt_state)))
    pointers = [shard.data.unsafe_buffer_pointer() for leaf in leaves for shard in leaf.addressable_shards]
    assert len(set(pointers)) == len(pointers)


def test_optimizer_state_without_averages_is_refused():
    with pytest.raises(ValueError, match="averages"):
        averages(optax.chain(optax.sgd(0.1)).init({"a": jnp.ones(2)}))


@pytest.mark.parametrize("fsdp", [2, 4])
def test_sharded_parameters_train_as_replicated_ones(fsdp, monkeypatch):
    monkeypatch.setattr(mesh, "SMALL", 0)
    whole, _ = run(5)
    sharded, _ = run(5, fsdp=fsdp)
    assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(sharded.params))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(ValueError, match=r"mesh\.fsdp=3"):
        make_mesh(fsdp=3)


def test_accumulated_gradient_is_that_of_the_whole_batch():
    def loss(model, params, key, batch):
        return jnp.mean((linear_net(params, batch.x0, jnp.ones(len(batch.x0))) - batch.x0) ** 2, axis=(1, 2, 3))

    method = Method(loss, CT.times)
    whole, _ = run(4, method=method)
    in_parts, _ = run(4, method=method, parts=4)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(in_parts.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_one_compilation_serves_a_growing_number_of_scales():
    _, records = run(9)
    assert [int(r["num_scales"]) for r in records] == [int(CURRICULUM(k)) for k in range(9)]
    assert len({int(r["num_scales"]) for r in records}) > 3


def test_labels_are_left_out_by_a_key_of_their_own(monkeypatch):
    """Of one key `fold_in` and `split` make the same ones."""
    keys = {}
    monkeypatch.setattr(train_step, "drop_labels", lambda key, label, **rate: keys.update(labels=key) or label)

    def augment(x0, key):
        keys["augment"] = key
        return x0, x0

    prepare_inputs(
        BATCH | {"label": np.zeros(16, int)}, jax.random.key(0), preprocess=lambda images, key: images,
        augment=augment, conditions=("label",), label_dropout=0.1,
    )  # fmt: skip
    derived, ours = (
        np.asarray(jax.random.key_data(k)) for k in (jax.random.split(keys["augment"], 32), keys["labels"])
    )
    assert not (derived == ours).all(axis=1).any()


def test_a_loss_that_is_not_finite_freezes_the_state_there():
    bad = {"image": np.full_like(IMAGES, np.nan)}
    good, _ = run(3)
    frozen, records = run(6, batches=[BATCH, BATCH, BATCH, bad, BATCH, BATCH])
    assert [bool(np.isfinite(r["loss"])) for r in records] == [True, True, True, False, False, False]
    assert int(frozen.step) == 3
    assert not bool(frozen.finite)
    for a, b in zip(jax.tree.leaves(good.params), jax.tree.leaves(frozen.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_that_are_not_finite_are_skipped_up_to_the_limit():
    bad = {"image": np.full_like(IMAGES, np.nan)}
    state, records = run(6, skip_nonfinite=2, batches=[BATCH, bad, BATCH, bad, bad, BATCH])
    assert [bool(np.isfinite(r["loss"])) for r in records] == [True, False, True, False, False, False]
    assert [bool(r["finite"]) for r in records] == [True] * 4 + [False] * 2
    assert [int(r["skipped"]) for r in records] == [0, 1, 1, 2, 2, 2]
    assert (int(state.step), int(state.skipped)) == (4, 2)  # of the step that stopped it, as without the limit
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    resumed, records = run(3, skip_nonfinite=3, batches=[bad, BATCH, bad], state=state.replace(finite=jnp.array(True)))
    assert [int(r["skipped"]) for r in records] == [3, 3, 3]
    assert (int(resumed.step), int(resumed.skipped)) == (6, 3)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # a branch, and a choice between two states
def test_a_skipped_step_only_counts(platform, monkeypatch):
    monkeypatch.setattr(train_step, "platform", lambda: platform)
    bad = {"image": np.full_like(IMAGES, np.nan)}
    before, _ = run(2, skip_nonfinite=1)
    after, _ = run(3, skip_nonfinite=1, batches=[BATCH, BATCH, bad])
    left, right = (jax.tree.leaves((state.params, state.opt_state)) for state in (before, after))
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (int(after.step), bool(after.finite)) == (3, True)


def test_the_update_is_the_same_by_a_branch_and_by_a_choice(monkeypatch):
    branch, _ = run(4)
    monkeypatch.setattr(train_step, "platform", lambda: "gpu")
    choice, _ = run(4)
    for a, b in zip(jax.tree.leaves(branch), jax.tree.leaves(choice), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # two programs round differently


def test_clipping_bounds_the_first_update():
    tx = make_optimizer(
        optax.identity(), learning_rate=lambda step: 1.0, clip_norm=0.5, weight_decay=0.0, average_rates={}
    )
    params = {"a": jnp.zeros(3)}
    updates, _ = tx.update({"a": jnp.array([3.0, 4.0, 0.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.3, -0.4, 0.0], rtol=1e-6)


def test_learning_rates_warm_up_and_decay():
    warm = constant_schedule(peak=2.0, total_steps=100, warmup_steps=10)
    np.testing.assert_allclose([warm(0), warm(5), warm(10), warm(99)], [0.0, 1.0, 2.0, 2.0])
    cosine = cosine_schedule(peak=2.0, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose([cosine(10), cosine(60), cosine(110)], [2.0, 1.0, 0.0], atol=1e-6)


def test_half_life_halves_after_its_images():
    rate = half_life(mimg=0.5, batch_size=500, ramp_up=0.0)
    np.testing.assert_allclose(float(rate(10**6)) ** 1000, 0.5, rtol=1e-3)
    ramped = half_life(mimg=0.5, batch_size=500, ramp_up=0.05)
    assert float(ramped(0)) == 0.0
    np.testing.assert_allclose(float(ramped(2000)) ** (0.05 * 2000), 0.5, rtol=1e-4)


def test_a_corrected_average_is_of_the_updated_parameters_alone():
    values, rate = np.random.default_rng(0).normal(size=(300, 4)), 0.999
    tracker = track_averages({"corrected": ema(rate=rate, batch_size=1)})

    def follow(state, value):
        _, state = tracker.update(value, state, jnp.zeros(4))
        return state, averages((state,))["corrected"]

    _, followed = jax.lax.scan(follow, tracker.init(jnp.full(4, 1e3)), jnp.asarray(values, jnp.float32))
    for count in (1, 2, 3, 30, 300):
        weights = rate ** np.arange(count)[::-1]
        expected = weights @ values[:count] / weights.sum()
        np.testing.assert_allclose(followed[count - 1], expected, atol=1e-6)


def test_a_corrected_rate_is_right_in_float32_and_ends_as_the_rate():
    rate, k = 0.99995, np.array([1, 2, 10, 1000, 10**5])
    expected = rate * (1 - rate**k) / (1 - rate ** (k + 1.0))
    corrected = jax.vmap(ema(rate=rate, batch_size=1))
    np.testing.assert_allclose(corrected(k), expected, rtol=2e-7)
    np.testing.assert_allclose(corrected(np.array([0, 10**6])), [0, rate], atol=1e-7)
    assert float(ema(rate=0.0, batch_size=1)(3)) == 0.0


@pytest.mark.parametrize(
    ("rate", "updates", "first", "fraction"),
    [
        (ema(rate=0.9999, batch_size=1, corrected=False), 1500, 0, 0.9999**1500),
        (ema(rate=0.9999, batch_size=1), 1500, 0, 0.0),
        (ema(rate=0.9999, batch_size=1), 1500, 150, 0.9999**1350 * (1 - 0.9999**150) / (1 - 0.9999**1500)),
        (half_life(mimg=0.1, batch_size=100, ramp_up=0.0), 3000, 0, 0.125),
        (half_life(mimg=0.1, batch_size=100), 3000, 0, 0.0),
        (power(std=12**-0.5, batch_size=1), 10**5, 10**4, 0.1),
        (ema(rate=0.999999, batch_size=1, corrected=False), 10**6, 0, np.exp(-1)),
        (lambda step: 1.0, 100, 0, 1.0),
    ],
)
def test_what_an_average_keeps_of_its_first_parameters(rate, updates, first, fraction):
    np.testing.assert_allclose(fraction_of_first(rate, updates, first=first), fraction, rtol=0.03)
