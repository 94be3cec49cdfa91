"""Distillation of Stable Diffusion to a latent consistency model, as diffusers' released scripts compute it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import cmjax
from cmjax.core import losses
from cmjax.core.distances import huber, l2
from cmjax.core.ode import ddim_step
from cmjax.core.pairs import ddim_grid_pairs
from cmjax.core.weightings import uniform
from cmjax.interop.conditional_unet import layer_of, load_unet, unet_key, unet_to_torch
from cmjax.interop.lora import LoraLayer, merged, read_lora
from tests.recorded_parts import assert_near, nhwc, quick_jit
from tests.test_pipeline import linked

DISTANCES = {"huber": partial(huber, c=0.001), "l2": l2}


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


@pytest.fixture(scope="module")
def recorded(sd):
    return np.load(sd / "distill.npz")


@pytest.fixture(scope="module")
def teacher(sd):
    return cmjax.load_pipeline(sd / "pipeline")


def batch_of(recorded, context=None, negative=None):
    """The recorded batch. Our scale of guidance is the script's w + 1."""
    t, r = recorded["start_timesteps"] / 1000, recorded["timesteps"] / 1000
    context = recorded["prompt_embeds"] if context is None else context
    negative = recorded["uncond_prompt_embeds"] if negative is None else negative
    conditions = {"context": context, "negative": {"context": negative}, "guidance": recorded["w"] + 1}
    times = cmjax.Times(jnp.asarray(t, jnp.float32), jnp.asarray(r, jnp.float32))
    x0, noise = (jnp.asarray(nhwc(recorded[name])) for name in ("latents", "noise"))
    return cmjax.Batch(x0, noise, times, jax.tree.map(jnp.asarray, conditions))


def lcm_loss(student, teacher, batch, distance, **choices):
    """(params, target_params) -> the losses of the student."""
    model = student.schedule.consistency_fn(student.net)
    step = partial(ddim_step, path=student.schedule.path)
    how = {"ode_step": step, "distance": DISTANCES[distance], "weight": uniform, **choices}
    return lambda params, target_params, teacher: losses.lcm(
        model, params, None, batch, target_params=target_params, teacher=teacher, **how
    )


def values_and_gradient(losses_of, params, *others):
    """Losses per sample, and the gradient of their mean."""

    def mean(params):
        values = losses_of(params, *others)
        return values.mean(), values

    (_, values), gradient = jax.value_and_grad(mean, has_aux=True)(params)
    return values, gradient


def check_gradient(recorded, prefix, gradient, of_key):
    """Within 2e-5 of each recorded one's largest element, and of their common norm."""
    names = [name.removeprefix(prefix) for name in recorded.files if name.startswith(prefix)]
    assert len(names) >= 3
    for name in names:
        assert_near(of_key(gradient, name), recorded[prefix + name], 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("distance", DISTANCES)
def test_recorded_distillation(sd, recorded, teacher, distance):
    module, params = load_unet(sd / "lcm" / "unet")
    _, target = load_unet(sd / "lcm" / "unet_target")
    student = replace(teacher, module=module, params=params)
    of_params = lcm_loss(student, teacher, batch_of(recorded), distance)
    values, gradient = quick_jit(partial(values_and_gradient, of_params))(params, target, teacher.denoiser)
    np.testing.assert_allclose(values, recorded[f"loss_{distance}"], rtol=1e-5)
    norm = recorded[f"grad_norm_{distance}"]
    np.testing.assert_allclose(optax.tree.norm(gradient), norm, rtol=2e-5)
    by_key = {unet_key(path): (path, array) for path, array in flatten_dict(gradient).items()}

    def of_key(_, name):
        path, array = by_key[name]
        return unet_to_torch(layer_of(path[:-1]), np.asarray(array), linear=module.linear_projection)

    check_gradient(recorded, f"grad_{distance}/", gradient, of_key)


@pytest.mark.slow
def test_recorded_distillation_of_a_lora(sd, recorded, teacher):
    """The student is the teacher with an adapter and its own target, and takes no guidance."""
    layers = read_lora(sd / "lora" / "peft.safetensors", teacher)["unet"]
    pairs = {path: (layer.down, layer.up) for path, layer in layers.items()}
    of_params = lcm_loss(teacher, teacher, batch_of(recorded), "huber", takes_guidance=False)

    def of_pairs(pairs, teacher):
        changed = {path: LoraLayer(*pair, layers[path].alpha) for path, pair in pairs.items()}
        return of_params(merged(teacher.params, changed), None, teacher)

    values, gradient = quick_jit(partial(values_and_gradient, of_pairs))(pairs, teacher.denoiser)
    np.testing.assert_allclose(values, recorded["lora/loss_huber"], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(gradient), recorded["lora/grad_norm_huber"], rtol=2e-5)
    by_layer = {layer_of(path[:-1]): (path, pair) for path, pair in gradient.items()}

    def of_key(_, name):
        layer, end = name.removesuffix(".weight").rsplit(".lora_", 1)
        array = np.asarray(by_layer[layer][1]["AB".index(end)])
        if end == "B":
            return array.T if recorded[f"lora/grad_huber/{name}"].ndim == 2 else array.T[:, :, None, None]
        return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)

    check_gradient(recorded, "lora/grad_huber/", gradient, of_key)


@pytest.mark.slow
@pytest.mark.parametrize("distance", DISTANCES)
def test_recorded_distillation_of_a_v_prediction(sd, recorded, tmp_path, distance):
    parts = {name: f"sd2/{name}" for name in ("unet", "scheduler", "text_encoder", "tokenizer")}
    pipeline = cmjax.load_pipeline(linked(tmp_path / "sd2", sd, **parts))
    file = np.load(sd / "sd2.npz")
    hidden = file["text/last_hidden_state"]
    negative = np.repeat(hidden[:1], 5, axis=0)
    batch = batch_of(recorded, hidden[[1, 4, 6, 9, 11]], negative)
    of_params = lcm_loss(pipeline, pipeline, batch, distance, takes_guidance=False)
    values = quick_jit(of_params)(pipeline.params, None, pipeline.denoiser)
    np.testing.assert_allclose(values, file[f"distill_v/loss_{distance}"], rtol=1e-5)


def test_times_of_the_recorded_indices(recorded):
    times = ddim_grid_pairs(steps=1000, skip=20)(jax.random.key(0), 1000, 0)
    pairs = set(zip(np.round(1000 * times.t).tolist(), np.round(1000 * times.r).tolist(), strict=True))
    given = set(zip(recorded["start_timesteps"].tolist(), recorded["timesteps"].tolist(), strict=True))
    assert given <= pairs
    assert len(pairs) == 50


def test_a_missing_condition_is_named(recorded, teacher):
    batch = batch_of(recorded)
    without = replace(batch, conditions={"context": batch.conditions["context"]})
    with pytest.raises(ValueError, match="guidance, label is missing"):
        lcm_loss(teacher, teacher, without, "l2")(teacher.params, None, teacher.denoiser)
