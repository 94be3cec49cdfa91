"""The newest flow maps against the numbers of their authors' code: losses, gradients, an update, and times."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from map_peers import COUNT, check, check_quantiles, check_step, log_weight, output

from cmjax import Batch, Model, Times, losses, paths
from cmjax.core import map_pairs, pairs, preconditioning, times, weightings
from cmjax.core.derivatives import central_difference
from cmjax.core.distances import adaptive, directional, l2
from cmjax.core.losses.recursive import fading
from cmjax.core.ode import heun_step
from cmjax.core.preconditioning import linear_expanded, linear_flow, scaled_velocity, trig_flow

pytestmark = pytest.mark.usefixtures("x64")
SUM = lambda x, y: adaptive(x, y, p=0.0, c=0.0)  # noqa: E731
COSINE = paths.Path(
    a=lambda t: jnp.cos(math.pi / 2 * t),
    b=lambda t: jnp.sin(math.pi / 2 * t),
    da=lambda t: -math.pi / 2 * jnp.sin(math.pi / 2 * t),
    db=lambda t: math.pi / 2 * jnp.cos(math.pi / 2 * t),
    signal_ends=1.0,
)


@pytest.fixture(scope="module")
def recorded(shared):
    """The numbers recorded from the authors' code; parity/README.md says what each is."""
    return np.load(shared / "parity" / "flow_maps.npz")


def batch_of(recorded, at, label="y", noise="z", **conditions):
    if label is not None:
        conditions["label"] = jnp.asarray(recorded[label] if isinstance(label, str) else label, jnp.int32)
    return Batch(jnp.asarray(recorded["x0"]), jnp.asarray(recorded[noise]), at, conditions)


def towards_data(recorded, path=paths.linear, scalings=linear_flow):
    """The network of authors whose time is 1 for data, and whose output is the velocity towards them: slots (s, t)."""

    def net(flat, x, c_noise, *, key=None, c_noise_s, label=None, return_weight=False):
        slots = {0: 1 - c_noise, 1: 1 - c_noise + c_noise_s}
        u = -output(recorded, flat, x, slots, label)
        return (u, log_weight(recorded, flat, slots)) if return_weight else u

    return Model(net, path, scalings)


def self_distilled(recorded, prefix, method, model, times, target):
    """The losses (b,) of flat parameters. Theirs distils at s = t too, but for the diagonal part."""
    batch = batch_of(recorded, times, "y" if recorded[f"{prefix}/with_labels"] else None)
    weighted = bool(recorded[f"{prefix}/learned_weight"])
    equal = (times.s == times.t) & (np.arange(8) >= recorded[f"{prefix}/num_diagonal"])
    x_t = batch.noised(model.path, times.t)

    def each(flat):
        ours = method(model, flat, None, batch, target_params=target, distance=SUM, weighted=weighted)
        held = jax.lax.stop_gradient(flat if target is None else target)
        u, v = (model.output(w, x_t, times.t, times.t, **batch.conditions) for w in (flat, held))
        w = model.weighted_output(flat, x_t, times.t, times.t, **batch.conditions)[1] * weighted
        return jnp.where(equal, jnp.exp(-w) * SUM(u, v) + w, ours)

    return each


@pytest.mark.parametrize("variant", ["convex", "convex_noweight", "trig", "teacher"])
def test_lsd_is_the_authors(recorded, variant):
    prefix = f"lsd/{variant}"
    model = towards_data(recorded, COSINE if variant == "trig" else paths.linear)
    times = Times(1 - jnp.asarray(recorded[f"{prefix}/s"]), s=1 - jnp.asarray(recorded[f"{prefix}/t"]))
    target = jnp.asarray(recorded["net/teacher"]) if variant == "teacher" else None
    gradient = check(recorded, prefix, self_distilled(recorded, prefix, losses.lsd, model, times, target))
    if variant == "convex":
        check_step(recorded, prefix, gradient, optax.chain(optax.clip_by_global_norm(1.0), optax.radam(1e-2)))


@pytest.mark.parametrize("variant", ["uniform", "midpoint", "uniform_teacher"])
def test_psd_is_the_authors(recorded, variant):
    prefix = f"psd/{variant}"
    t, s = (1 - jnp.asarray(recorded[f"{prefix}/{name}"]) for name in ("s", "t"))
    h = 0.5 if variant == "midpoint" else jnp.asarray(recorded[f"{prefix}/h"])
    model, times = towards_data(recorded), Times(t, h * t + (1 - h) * s, s)
    target = jnp.asarray(recorded["net/teacher"]) if variant.endswith("teacher") else None
    gradient = check(recorded, prefix, self_distilled(recorded, prefix, losses.psd, model, times, target))
    if variant == "uniform":
        check_step(recorded, prefix, gradient, optax.chain(optax.clip_by_global_norm(1.0), optax.radam(1e-2)))


@pytest.mark.parametrize("variant", ["released_w2", "noscale", "random_cfg"])
def test_tvm_is_the_authors(recorded, variant):
    """Their two terms, at times (t, s) and at s', are ours of two batches, of which the second has s = t."""
    prefix = f"tvm/{variant}"
    scaled = bool(recorded[f"{prefix}/scale_param"])

    def net(flat, x, c_noise, *, key=None, c_noise_s, label, guidance):
        return output(recorded, flat, x, {0: c_noise, 1: c_noise_s, 2: 1 / guidance}, label)

    model = Model(scaled_velocity(net) if scaled else net, paths.linear, linear_flow)
    ema = jnp.asarray(recorded["net/ema"])
    label = np.where(recorded[f"{prefix}/dropped"], -1, recorded["y"])
    w = 1 / jnp.broadcast_to(jnp.asarray(recorded[f"{prefix}/beta"]), (8,))
    t, s, alone = (jnp.asarray(recorded[f"{prefix}/{name}"]) for name in ("t", "s", "s_prime"))
    apart, together = (batch_of(recorded, Times(t, s=s), label, guidance=w) for t, s in ((t, s), (alone, alone)))

    def loss(flat, batch):
        return losses.tvm(model, flat, None, batch, target_params=ema, distance=l2)

    gradient = check(recorded, prefix, lambda flat: loss(flat, apart) * (s < t) + loss(flat, together))
    if variant == "released_w2":
        check_step(recorded, prefix, gradient, optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.0))


def test_the_times_of_lsd_are_the_authors(recorded):
    uniform = times.uniform(t_min=0.0, t_max=1.0)
    pair = pairs.sorted_pairs(uniform, uniform, apart=1.0)(jax.random.key(0), COUNT, 0)
    check_quantiles(recorded, "lsd/times/s", 1 - pair.t)
    check_quantiles(recorded, "lsd/times/t", 1 - pair.s)


def test_the_times_of_tvm_are_the_authors(recorded):
    """Their s′ are our times with s = t."""
    lengths, together = (times.logit_normal(mean=mean, std=1.0) for mean in (-0.8, -0.4))
    sample = map_pairs.ending_pairs(lengths, mean=-0.4, std=1.0, apart=0.5)
    pair = sample(jax.random.key(0), 2 * COUNT, 0)
    apart = pair.s < pair.t
    assert apart.sum() == COUNT
    for name, ours in (("t", pair.t[apart]), ("s", pair.s[apart]), ("gap", (pair.t - pair.s)[apart])):
        check_quantiles(recorded, f"tvm/times/{name}", ours)
    check_quantiles(recorded, "tvm/times/s_prime", pair.t[~apart])
    again = map_pairs.matched_by(sample, together)(jax.random.key(0), 2 * COUNT, 0)
    check_quantiles(recorded, "tvm/times/s_prime", again.t[again.s == again.t])


def test_the_times_of_dmf_are_the_authors(recorded):
    one, other = times.logit_normal(mean=0.4, std=1.0), times.logit_normal(mean=-1.2, std=1.0)
    both = pairs.sorted_pairs(one, other, apart=0.5, exact=True)
    pair = map_pairs.matched_by(both, times.logit_normal(mean=0.0, std=1.0))(jax.random.key(0), 2 * COUNT, 0)
    apart = pair.s < pair.t
    for name, ours in (("t", pair.t[apart]), ("r", pair.s[apart]), ("t_fm", pair.t[~apart])):
        check_quantiles(recorded, f"dmf/times_script/{name}", ours)


def mean_adaptive(p, eps):
    """The mean squared error over its own power, as SoFlow and RCGM have it."""

    def distance(x, y):
        error = l2(x, y)
        return error / jax.lax.stop_gradient(error + eps) ** p

    return distance


SOFLOW = ["imagenet", "imagenet_trig", "linear_trigcoef", "cifar", "mix1"]


def trig_coefficients(t, s):
    angle = math.pi / 2 * (s - t)
    return linear_flow(t, s)._replace(c_skip=jnp.cos(angle), c_out=jnp.sin(angle))


@pytest.mark.parametrize("variant", SOFLOW)
def test_soflow_is_the_authors(recorded, variant):
    prefix = f"soflow/{variant}"
    get = {name: float(recorded[f"{prefix}/{name}"]) for name in ("p", "eps", "cfg", "mix", "decay")}

    def net(flat, x, c_noise, *, key=None, c_noise_s, label=None):
        return output(recorded, flat, x, {0: c_noise, 1: c_noise_s}, label)

    path = COSINE if variant == "imagenet_trig" else paths.linear
    model = Model(net, path, trig_coefficients if "trig" in variant else linear_flow)
    t, r, s, alone = (jnp.asarray(recorded[f"{prefix}/{name}"]) for name in ("t", "l", "s", "t_velocity"))
    with_labels = bool(recorded[f"{prefix}/with_labels"])
    label = np.where(recorded[f"{prefix}/dropped"], -1, recorded["y"]) if with_labels else np.full(8, -1)
    choices = {"distance": mean_adaptive(get["p"], get["eps"])}
    if with_labels and get["cfg"] > 1:
        choices |= {"guidance": get["cfg"], "blend": 1 - get["mix"], "fades_after": get["decay"]}

    def each(batch):
        return lambda flat: losses.soflow(model, flat, None, batch, **choices)

    velocity = each(batch_of(recorded, Times(alone, alone, alone), label))
    consistency = each(batch_of(recorded, Times(t, r, s), label))
    by_velocity = check(recorded, prefix, velocity, loss="velocity_i", gradient="velocity_grad")
    by_consistency = check(recorded, prefix, consistency, loss=None, gradient="consistency_grad")
    expected = recorded[f"{prefix}/consistency_mse_i"] * recorded[f"{prefix}/consistency_weight_i"] / 2
    np.testing.assert_allclose(consistency(jnp.asarray(recorded["net/online"])), expected, rtol=1e-9)
    if f"{prefix}/step_theta" in recorded:
        rule = optax.adamw(1e-4, b1=0.9, b2=0.99, weight_decay=0.0)
        check_step(recorded, prefix, 0.75 * by_velocity + 0.25 * by_consistency, rule)


def test_soflows_guidance_fades_as_the_authors(recorded):
    t = jnp.asarray(recorded["soflow/decay/t"])
    for after, name in ((0.8, "scale_from_08"), (0.6, "scale_from_06")):
        np.testing.assert_allclose(fading(t, after), recorded[f"soflow/decay/{name}"], rtol=1e-9)


def facms(recorded, variant):
    """The network: one expanded time, where the anchor's is 2 − τ, or τ and a second one, 1 for consistency."""
    two_times = variant == "distill_aux" or variant == "meanflow_loss"

    def net(flat, x, c_noise, *, key=None, c_noise_s=None, label=None):
        slots = {0: 1 - c_noise, 1: 1 - c_noise + c_noise_s} if two_times else {0: 1 - c_noise}
        return -output(recorded, flat, x, slots, label)

    return Model(net, paths.linear, linear_flow if two_times else linear_expanded)


def teacher_of(recorded, slots):
    """The denoiser of a velocity towards the data."""

    def denoised(x, t, *, label):
        return x + t[:, None, None, None] * output(recorded, recorded["net/teacher"], x, slots(1 - t), label)

    return denoised


@pytest.mark.parametrize("variant", ["distill", "distill_aux", "scratch", "scratch_noguidance", "distill_p1"])
def test_facm_is_the_authors(recorded, variant):
    prefix = f"facm/{variant}"
    t, model = 1 - jnp.asarray(recorded[f"{prefix}/t"]), facms(recorded, variant)
    teacher = None
    if variant.startswith("distill"):
        teacher = teacher_of(recorded, (lambda tau: {0: tau, 1: tau}) if "aux" in variant else (lambda tau: {0: tau}))
    choices = {
        "teacher": teacher,
        "guidance": float(recorded[f"{prefix}/cfgw"]),
        "interval": (0.0, 1 - float(recorded[f"{prefix}/glow"])),
        "power": float(recorded[f"{prefix}/p"]),
    }
    batch = batch_of(recorded, Times(t))
    gradient = check(recorded, prefix, lambda w: losses.facm(model, w, None, batch, **choices))
    if f"{prefix}/step_theta" in recorded:
        rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b2=0.999, weight_decay=0.0))
        check_step(recorded, prefix, gradient, rule)


@pytest.mark.parametrize("variant", ["default", "mg", "distill", "mg_cosine"])
def test_dmf_is_the_authors(recorded, variant):
    """Both of their batches, one of flow matching, are two of ours; a loss per sample, as in the paper."""
    prefix = f"dmf/{variant}"

    def net(flat, x, c_noise, *, key=None, c_noise_s, label, return_weight=False):
        slots = {0: c_noise, 1: c_noise - c_noise_s}
        u = output(recorded, flat, x, slots, label)
        return (u, log_weight(recorded, flat, slots)) if return_weight else u

    path = COSINE if "cosine" in variant else paths.linear
    model, omega = Model(net, path, linear_flow), float(recorded[f"{prefix}/omega"])
    choices = {"interval": (float(recorded[f"{prefix}/g_min"]), float(recorded[f"{prefix}/g_max"]))}
    if variant == "distill":
        choices |= {"teacher": data_teacher(recorded), "guidance": omega}
    else:
        choices["blend"] = omega
    label = np.where(recorded[f"{prefix}/dropped"], -1, recorded["y"])
    t_fm, t, r = (jnp.asarray(recorded[f"{prefix}/{name}"]) for name in ("t_fm", "t", "r"))
    batches = [
        batch_of(recorded, Times(t, s=s), label, f"{prefix}/{noise}", )
        for t, s, noise in ((t_fm, t_fm, "noise_fm"), (t, r, "noise_mf"))
    ]  # fmt: skip
    gradient = check(
        recorded, prefix, lambda w: sum(losses.dmf(model, w, None, batch, **choices) for batch in batches) / 2
    )
    if f"{prefix}/step_theta" in recorded:
        rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.0))
        check_step(recorded, prefix, gradient, rule)


def data_teacher(recorded):
    """The denoiser of a teacher of one time, whose output is the velocity towards noise."""

    def denoised(x, t, *, label):
        return x - t[:, None, None, None] * output(recorded, recorded["net/teacher"], x, {0: t}, label)

    return denoised


@pytest.mark.parametrize("variant", ["n1", "n2", "n3", "n2_guided", "n2_l2"])
def test_rcgm_is_the_authors(recorded, variant):
    prefix = f"rcgm/{variant}"

    def net(flat, x, c_noise, *, key=None, c_noise_s, label):
        return output(recorded, flat, x, {0: c_noise, 1: c_noise - c_noise_s}, label)

    model, (first, last) = Model(net, paths.linear, linear_flow), recorded[f"{prefix}/range"]
    t, s = jnp.asarray(recorded[f"{prefix}/t"]), jnp.asarray(recorded[f"{prefix}/tt"])
    choices = {
        "order": int(recorded[f"{prefix}/order"]),
        "blend": float(recorded[f"{prefix}/rho"]),
        "interval": (float(first), float(last)),
        "distance": l2 if variant == "n2_l2" else lambda x, y: 1.01**0.5 * mean_adaptive(0.5, 1.01e-6)(x, y),
        "weight": weightings.tan_gap,
        "target_params": jnp.asarray(recorded["net/ema"]),
    }
    batch = batch_of(recorded, Times(t, s=s))
    check(recorded, prefix, lambda w: losses.rcgm(model, w, None, batch, **choices))


@pytest.mark.parametrize("variant", ["m1", "m4"])
def test_ctm_is_the_authors(recorded, variant):
    prefix = f"ctm/{variant}"

    def net(flat, x, c_noise, *, key=None, c_noise_s=None):
        return output(recorded, flat, x, {0: c_noise} if c_noise_s is None else {0: c_noise, 1: c_noise_s})

    model = Model(net, paths.ve, partial(preconditioning.ctm, sigma_data=0.5))
    denoiser = Model(net, paths.ve, partial(preconditioning.edm, sigma_data=0.5))
    choices = {
        "teacher": partial(denoiser, jnp.asarray(recorded["net/teacher"])),
        "target_params": jnp.asarray(recorded["net/ema"]),
        "ode_step": heun_step,
        "grid": np.sort(recorded["ctm/grid/t"]),
        "distance": l2,
        "weight": partial(weightings.karras, sigma_data=0.5),
    }

    def each(batch):
        return lambda flat: losses.ctm(model, flat, None, batch, **choices)

    t, r, s, sigma = (jnp.asarray(recorded[f"{prefix}/{name}"]) for name in ("t", "t_dt", "s", "sigma"))
    consistency = each(batch_of(recorded, Times(t, r, s), None))
    check(recorded, prefix, consistency, loss="consistency_i", gradient="consistency_grad")
    denoising = each(batch_of(recorded, Times(sigma, sigma, sigma), None, f"{prefix}/noise_dsm"))
    check(recorded, prefix, denoising, loss="denoising_i", gradient="denoising_grad")


def slots_of_tim(recorded):
    def net(flat, x, c_noise, *, key=None, c_noise_s, label):
        return output(recorded, flat, x, {0: c_noise, 1: c_noise - c_noise_s}, label)

    return net


TRIG = paths.trig(sigma_data=1.0)
TIM = {
    "otfm": (paths.linear, linear_flow, {"weight": weightings.inverse_tan_gap}),
    "otfm_jvp": (paths.linear, linear_flow, {"weight": weightings.inverse_tan_gap, "derivative": jax.jvp}),
    "otfm_constant": (paths.linear, linear_flow, {"weight": weightings.uniform}),
    "otfm_dir_guided": (
        paths.linear, linear_flow,
        {"weight": weightings.inverse_tan_gap, "distance": partial(directional, c=1e-5), "blend": 0.75,
         "interval": (0.3, 0.8)},
    ),
    "trig": (TRIG, partial(trig_flow, sigma_data=1.0), {"weight": weightings.inverse_time_gap}),
}  # fmt: skip


@pytest.mark.parametrize("variant", TIM)
def test_tim_is_the_authors(recorded, variant):
    prefix, (path, scalings, choices) = f"tim/{variant}", TIM[variant]
    t, s = jnp.asarray(recorded[f"{prefix}/t"]), jnp.asarray(recorded[f"{prefix}/r"])
    model, batch = Model(slots_of_tim(recorded), path, scalings), batch_of(recorded, Times(t, s=s))
    choices = {
        "distance": mean_adaptive(1.0, 1e-5),
        "derivative": central_difference(step=0.005),
        "target_params": jnp.asarray(recorded["net/ema"]),
        **choices,
    }
    check(recorded, prefix, lambda w: losses.tim(model, w, None, batch, **choices))


@pytest.mark.parametrize("variant", ["otfm", "trig"])
def test_tims_step_is_the_maps(recorded, variant):
    prefix, (path, scalings, _) = f"tim/step_{variant}", TIM[variant]
    t, s, x, out = (jnp.asarray(recorded[f"{prefix}/{name}"]) for name in ("t", "r", "x_t", "F"))
    moved = Model(lambda params, x, t, *, key=None, c_noise_s: out, path, scalings)(None, x, t, s)
    np.testing.assert_allclose(moved, recorded[f"{prefix}/x_r"], rtol=1e-12)


def test_the_times_of_tim_are_the_authors(recorded):
    one = times.logit_normal(mean=0.0, std=1.0)
    pair = pairs.sorted_pairs(one, one, apart=0.5, exact=True, whole=0.1)(jax.random.key(0), COUNT, 0)
    check_quantiles(recorded, "tim/times_otfm/t", pair.t)
    beyond = recorded["probs"] > 0.1  # the tenth of the batch with s = 0
    high = {"probs": recorded["probs"][beyond], "r": recorded["tim/times_otfm/r"][beyond]}
    check_quantiles(high, "r", pair.s)
    assert np.count_nonzero(pair.s == 0) == COUNT // 10
    assert np.mean(pair.s == pair.t) == recorded["tim/times_otfm/share_equal"]
    one = times.lognormal(mean=-1.0, std=1.6, path=TRIG)
    pair = pairs.sorted_pairs(one, one, apart=1.0)(jax.random.key(0), COUNT, 0)
    check_quantiles(recorded, "tim/times_trig/t", pair.t)
    check_quantiles(recorded, "tim/times_trig/r", pair.s)
