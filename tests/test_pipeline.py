"""Pipelines of Stable Diffusion: recorded loops from prompts to images, folders of every kind, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import cmjax
from cmjax.core.editing import inpainting, mask_of_latents
from cmjax.core.grids import ddim_steps, lcm_steps
from cmjax.interop import text_to_image
from cmjax.interop.clip import text_key, text_shapes
from cmjax.interop.conditional_unet import unet_key, unet_module, unet_shapes, unet_to_torch
from cmjax.interop.keys import ForeignError
from cmjax.interop.prompt_sampling import pipeline_images, pipeline_latents
from cmjax.interop.scheduler import read_schedule
from cmjax.nets.clip import ClipText
from tests.recorded_parts import assert_near, nhwc, quick_jit
from tests.test_conditional_unet import SDXL

images = quick_jit(pipeline_images, static_argnames=("sampler", "size"))
latents = quick_jit(pipeline_latents, static_argnames=("shape", "sampler"))
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What `sample` compiles is compiled quickly."""
    monkeypatch.setattr(text_to_image, "_jitted_images", images)


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


def linked(folder, sd, **parts):
    """A pipeline's folder whose parts lie elsewhere."""
    folder.mkdir()
    shutil.copy(sd / "pipeline" / "model_index.json", folder)
    for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        if name not in parts or parts[name]:
            (folder / name).symlink_to(sd / parts.get(name, f"pipeline/{name}"))
    return folder


@pytest.fixture(scope="module")
def folders(sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    linked(folder / "lcm", sd, unet="lcm/unet", scheduler="lcm/scheduler")
    parts = {name: f"sd2/{name}" for name in ("unet", "scheduler", "text_encoder", "tokenizer")}
    linked(folder / "sd2", sd, **parts)
    return folder


@pytest.fixture(scope="module")
def sd15(sd):
    return cmjax.load_pipeline(sd / "pipeline")


@pytest.fixture(scope="module")
def lcm(folders):
    return cmjax.load_pipeline(folders / "lcm")


@pytest.fixture(scope="module")
def recorded(sd):
    return np.load(sd / "lcm.npz")


def test_recorded_steps(sd, recorded):
    schedule = read_schedule({}, "")
    cases = {name.removeprefix("timesteps/"): recorded[name] for name in recorded.files if "timesteps/" in name}
    for name, steps in cases.items():
        words = name.split("_")
        strength = float(words[-1]) if "strength" in name else 1.0
        if words[0] == "custom":
            custom = cases[f"custom_{words[1]}"].tolist()
            np.testing.assert_array_equal(schedule.lcm_steps(custom, strength=strength), steps)
        elif words[0].isdigit():
            ours = lcm_steps(int(words[0]), original=int(words[2]), strength=strength)
            np.testing.assert_array_equal(ours, steps)
    ddim = np.load(sd / "ddim.npz")
    for n in (4, 10, 20, 50):
        np.testing.assert_array_equal(ddim_steps(n, offset=1), ddim[f"ddim_timesteps/{n}"])


def test_recorded_schedule(sd, recorded):
    config = json.loads((sd / "lcm" / "scheduler" / "scheduler_config.json").read_text())
    schedule, times = read_schedule(config, ""), jnp.arange(1000) / 1000
    assert_near(schedule.path.a(times) ** 2, recorded["alphas_cumprod"], 1e-6)
    scalings = schedule.consistency_fn(lambda *_: None).scalings(times)
    c_out = recorded["c_out"] / np.sqrt(recorded["alphas_cumprod"])
    np.testing.assert_allclose(scalings.c_skip, recorded["c_skip"] + c_out, rtol=2e-6)
    of_noise = -c_out * np.sqrt(1 - recorded["alphas_cumprod"].astype(np.float64))
    np.testing.assert_allclose(scalings.c_out, of_noise, rtol=2e-5)


def at(recorded, case, *names):
    """Images and latents of a case, channels last."""
    return [nhwc(recorded[f"{case}/{name}"]) for name in names]


def test_recorded_evaluations_of_a_consistency_function(lcm, recorded):
    states, times, denoised = [], [], []
    for case in ("loop_1", "loop_2", "loop_4", "loop_custom_b"):
        start, after, each = at(recorded, case, "latents_start", "latents", "denoised")
        states += [start, *after[:-1]]
        denoised += list(each)
        times += [np.full(2, step / 1000) for step in recorded[f"{case}/timesteps"]]
    context = np.tile(recorded["loop/context"], (len(states), 1, 1))
    guidance = jnp.full((2 * len(states),), float(recorded["loop_4/guidance_scale"]))
    f = quick_jit(lambda pipeline, *inputs, **conditions: pipeline.consistency_fn(*inputs, **conditions))
    out = f(lcm, np.concatenate(states), np.concatenate(times), context=context, guidance=guidance)
    assert_near(out, np.concatenate(denoised))


@pytest.mark.parametrize(
    "case",
    ["loop_4", *(pytest.param(f"loop_{case}", marks=pytest.mark.slow) for case in ("1", "2", "custom_b", "4_wide"))],
)
def test_recorded_loops_of_an_lcm(lcm, recorded, case):
    start, noises, out = at(recorded, case, "latents_start", "noises", "out")
    steps = recorded[f"{case}/timesteps"].tolist()
    times = lcm.times("lcm", steps if case == "loop_custom_b" else len(steps))
    np.testing.assert_allclose(times, np.array(steps) / 1000)
    assert lcm.sampler == "lcm"
    guidance = jnp.full((2,), float(recorded[f"{case}/guidance_scale"]))
    conditions = {"context": recorded["loop/context"], "guidance": guidance}
    ours = latents(lcm, KEY, shape=start.shape, sampler="lcm", times=times, start=start, noises=noises, **conditions)
    assert_near(ours, out)
    if f"{case}/image" in recorded.files:
        assert_near(quick_jit(type(lcm).decode)(lcm, ours), *at(recorded, case, "image"))


def test_recorded_edit_of_an_image(lcm, recorded):
    case = "img2img"
    image, encode, noise, noises, started, out = at(
        recorded, case, "image_in", "noise_encode", "noise_start", "noises", "latents_start", "out"
    )
    times = lcm.times("lcm", 4, strength=0.5)
    encoded = quick_jit(type(lcm).encode)(lcm, 2 * image - 1, encode)
    start = lcm.schedule.path.add_noise(encoded, jnp.asarray(noise), times[0])
    assert_near(start, started)
    conditions = {"context": recorded["loop/context"], "guidance": jnp.full((2,), 8.5)}
    ours = latents(lcm, KEY, shape=start.shape, sampler="lcm", times=times, start=start, noises=noises, **conditions)
    assert_near(ours, out)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["lcm", "ddim"])
def test_inpainting_replaces_known_latents_before_every_evaluation(lcm, recorded, sampler):
    z, n, *noises = (jax.random.normal(jax.random.key(i), (1, 4, 4, 4)) for i in range(5))
    known = jnp.zeros((1, 4, 4, 1)).at[:, :, 1:3].set(1)
    path, operator = lcm.schedule.path, inpainting(known)
    given = {"context": jnp.asarray(recorded["loop/context"][:1]), "guidance": jnp.full((1,), 8.5)}
    times = lcm.times(sampler, [900, 500, 100])
    begun, by = path.add_noise(operator.degrade(z), n, times[0]), {"sampler": sampler, "times": times}
    model = lcm.consistency_fn if sampler == "lcm" else lcm.denoiser
    f = quick_jit(lambda x, t: model(x, t, **given))
    x = begun
    for i, (t, r) in enumerate(zip(times, [*times[1:], None], strict=True)):
        if sampler == "lcm":  # [Song et al. 2023, alg. 4], with all noise
            x = operator.combine(z, f(path.add_noise(x, noises[i - 1], t) if i else x, t))
        else:
            x = operator.combine(path.add_noise(z, n, t), x)
            x = path.ddim(x, f(x, t), t, r) if r is not None else f(x, t)
    expected = operator.combine(z, x)
    ours = latents(lcm, KEY, shape=z.shape, start=begun, noises=jnp.stack(noises), known=(z, known), **by, **given)
    assert_near(ours, expected, 2e-5)


def by_solver(pipeline, recorded, case, tolerance=1e-5, sampler="ddim"):
    start, out = at(recorded, case, "latents_start", "out")
    guidance = jnp.full((len(start),), float(recorded[f"{case}/guidance_scale"]))
    context, negative = recorded[f"{case}/context"], {"context": recorded[f"{case}/uncond"]}
    times = pipeline.times(sampler, 10)
    # PNDM's second time is evaluated twice
    np.testing.assert_allclose(times[:-1] * 1000, np.unique(recorded[f"{case}/timesteps"])[::-1])
    ours = latents(
        pipeline, KEY, shape=start.shape, sampler=sampler, times=times, start=start,
        context=context, guidance=guidance, negative=negative,
    )  # fmt: skip
    assert_near(ours, out, tolerance)
    return ours


def test_recorded_loop_of_ddim_with_guidance(sd, sd15):
    recorded = np.load(sd / "ddim.npz")
    assert_near(sd15.schedule.path.a(jnp.zeros(())) ** 2, recorded["ddim_final_alpha_cumprod"], 1e-6)
    ours = by_solver(sd15, recorded, "ddim_10")
    assert_near(quick_jit(type(sd15).decode)(sd15, ours), *at(recorded, "ddim_10", "image"))


def test_recorded_loop_of_pndm(sd, sd15):
    recorded = np.load(sd / "ddim.npz")
    for n in (4, 10, 20, 50):
        steps = np.rint(sd15.times("pndm", n)[:-1] * 1000)
        np.testing.assert_array_equal(np.insert(steps, 1, steps[1]), recorded[f"pndm_timesteps/{n}"])
    by_solver(sd15, recorded, "pndm_10", sampler="pndm")


@pytest.mark.slow
def test_recorded_loop_of_ddim_of_another_size(sd, sd15):
    by_solver(sd15, np.load(sd / "ddim.npz"), "ddim_10_wide")


@pytest.mark.slow
def test_recorded_loops_of_a_v_prediction(sd, folders):
    pipeline, recorded = cmjax.load_pipeline(folders / "sd2"), np.load(sd / "sd2.npz")
    assert pipeline.schedule.prediction == "v"
    by_solver(pipeline, recorded, "ddim_10", 2e-5)  # measured: 1.0e-5
    start, noises, denoised = at(recorded, "lcm_v", "latents_start", "noises", "denoised")
    times = pipeline.times("lcm", 4)
    context = recorded["lcm_v/context"]
    ours = latents(
        pipeline, KEY, shape=start.shape, sampler="lcm", times=times, start=start, noises=noises, context=context
    )
    assert_near(ours, denoised[-1])


def test_recorded_context_of_prompts(sd, sd15, recorded):
    prompts = json.loads((sd / "prompts.json").read_text())
    rows = sd15.rows([prompts[1], prompts[4]], sampler="ddim")
    conditions = quick_jit(type(sd15).guided_conditions, static_argnames="size")(sd15, rows, size=(64, 64))
    assert_near(conditions["context"], recorded["loop/context"], 1e-5)
    np.testing.assert_array_equal(conditions["guidance"], [7.5, 7.5])
    empty = np.load(sd / "text.npz")["last_hidden_state"][:1]
    assert_near(conditions["negative"]["context"], np.repeat(empty, 2, axis=0), 1e-5)


def test_an_image_does_not_depend_on_its_batch_and_sizes_are_free(lcm):
    keys = jax.random.split(KEY, 2)
    images = lcm.sample(["a cat", "a dog"], key=keys, steps=1, size=(32, 16))
    assert images.shape == (2, 32, 16, 3)
    assert np.abs(images).max() <= 1
    beside = lcm.sample(["a dog", "a fox"], key=keys[::-1], steps=1, size=(32, 16))
    np.testing.assert_allclose(images[1], beside[0], atol=2e-4)
    other = lcm.sample(["a dog", "a fox"], key=keys[::-1], steps=1, size=(32, 16), guidance=3.0)
    assert np.abs(other - beside).max() > 1e-3


@pytest.mark.parametrize("sampler", ["lcm", pytest.param("pndm", marks=pytest.mark.slow)])
def test_inpainting_keeps_pixels_and_what_it_hides_counts_below_full_strength_alone(lcm, sampler):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 32, 3)).astype(np.float32)
    mask = np.ones((16, 32), bool)
    mask[:, 9:] = False  # of the second square of 8 a column is known
    other = np.where(mask[None, ..., None], images, 0.5)
    by = {"key": KEY, "steps": 4, "sampler": sampler}
    prompts = ["a cat", "a dog"]
    made = lcm.inpaint(prompts, images, mask, **by)
    np.testing.assert_array_equal(made[:, mask], images[:, mask])
    assert np.abs(made - images)[:, ~mask].max() > 0.1
    np.testing.assert_array_equal(mask_of_latents(mask[None, ..., None], 8)[0, :, :, 0], [[1, 0, 0, 0]] * 2)
    # the encoder sees all pixels: what is hidden reaches known latents a little
    hidden = np.abs(made - lcm.inpaint(prompts, other, np.stack([mask, mask]), **by)).mean()
    below = [lcm.inpaint(prompts, shown, mask, strength=0.5, **by) for shown in (images, other)]
    assert hidden < 0.5 * np.abs(below[0] - below[1]).mean()
    np.testing.assert_array_equal(below[0][:, mask], images[:, mask])


@pytest.mark.slow
def test_a_low_strength_stays_near_the_image(lcm):
    by = {"prompts": ["a cat", "a dog"], "key": KEY, "sampler": "ddim", "images": np.zeros((2, 16, 32, 3), np.float32)}
    near, low, high = (lcm.sample(steps=steps, strength=1.0, **by) for steps in ([1], [2], [900]))
    assert np.abs(near - low).mean() < 0.2 * np.abs(near - high).mean()
    np.testing.assert_array_equal(lcm.sample(steps=50, strength=0.02, **by), near)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "pndm", "steps": 1}, "steps must be 2 or more for pndm, got 1 at strength=1"),
        ({"sampler": "euler"}, "sampler must be one of ddim, pndm, lcm, got 'euler'"),
        ({"size": (60, 64)}, r"size must be a height and a width, multiples of 8, got \(60, 64\)"),
        ({"negative": [""]}, "a negative prompt has no effect: the network has guidance as an input"),
        ({"guidance": np.inf}, "guidance must be finite, got inf"),
        ({"steps": 51}, "n must lie in 1 … 50, the steps of 50 at strength=1, got 51"),
        ({"steps": (1, 2)}, "steps must be whole numbers that descend within 999 … 0"),
        ({"images": np.zeros((1, 64, 64, 3), np.float32), "strength": 0.0}, r"strength in \(0, 1\], got 50 and 0"),
        ({"images": np.zeros((2, 64, 64, 3), np.float32)}, "one of each prompt"),
    ],
)
def test_wrong_calls(lcm, arguments, message):
    with pytest.raises(ValueError, match=message):
        lcm.sample(["a cat"], key=KEY, **arguments)


def test_wrong_masks(lcm):
    images = np.zeros((1, 16, 16, 3), np.float32)
    for mask in (np.ones((8, 8)), np.full((16, 16), 0.5)):
        with pytest.raises(ValueError, match=r"mask must be 0 and 1 of \(16, 16\) or \(1, 16, 16\), got"):
            lcm.inpaint(["a cat"], images, mask, key=KEY)


def random_weights(shapes, key_of, to_torch, seed):
    random = np.random.default_rng(seed)
    return {
        key_of(path): to_torch(path, random.normal(size=leaf.shape).astype(np.float32) / 8)
        for path, leaf in shapes.items()
    }


def matrix_to_torch(path, array):
    return np.ascontiguousarray(array.T) if path[-1] == "kernel" else array


@pytest.fixture(scope="module")
def sdxl_folder(sd, tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl", sd)


def write_sdxl(folder, sd):
    """A small SDXL: random weights, two text encoders, of which the second is projected."""
    linked(folder, sd, unet=None, text_encoder=None)
    (folder / "tokenizer_2").symlink_to(sd / "sd2" / "tokenizer")
    small = {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "cross_attention_dim": 28, "sample_size": 4}
    heads = {"attention_head_dim": [2, 2, 4], "transformer_layers_per_block": [1, 1, 2]}
    added = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34}
    config = {**SDXL, "_class_name": "UNet2DConditionModel", **small, **heads, **added, "layers_per_block": 1}
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    shapes = unet_shapes(unet_module(config, ""))
    arrays = random_weights(
        shapes, unet_key, lambda path, array: unet_to_torch(unet_key(path).rpartition(".")[0], array, linear=True), 0
    )
    save_file(arrays, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    for name, width, projection in (("text_encoder", 12, 0), ("text_encoder_2", 16, 10)):
        text = {
            "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
            "vocab_size": 676, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "projection_dim": projection or 5, "eos_token_id": 2,
        }  # fmt: skip
        module = ClipText(tokens=676, width=width, inner=8, layers=2, heads=2, projection=projection)
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(text))
        arrays = random_weights(text_shapes(module), text_key, matrix_to_torch, 1)
        save_file(arrays, folder / name / "model.safetensors")
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.slow
def test_sdxl_sees_two_text_encoders_and_sizes(sdxl_folder):
    pipeline = cmjax.load_pipeline(sdxl_folder)
    prompts = ["a cat", "a dog!"]
    conditions_of = quick_jit(type(pipeline).guided_conditions, static_argnames="size")
    conditions = conditions_of(pipeline, pipeline.rows(prompts, sampler="ddim", guidance=5.0), size=(32, 64))
    first, second = (text(ids) for text, ids in zip(pipeline.texts, pipeline.tokens(prompts), strict=True))
    np.testing.assert_allclose(conditions["context"][..., :12], first.hidden[-2], atol=1e-5)
    np.testing.assert_allclose(conditions["context"][..., 12:], second.hidden[-2], atol=1e-5)
    np.testing.assert_allclose(conditions["pooled"], second.projected, atol=1e-5)
    np.testing.assert_array_equal(conditions["sizes"], [[32, 64, 0, 0, 32, 64]] * 2)
    without = conditions["negative"]
    assert not without["context"].any()
    assert not without["pooled"].any()
    np.testing.assert_array_equal(without["sizes"], conditions["sizes"])
    rows = pipeline.rows(prompts, sampler="ddim", negative=["bad", "worse"])
    assert conditions_of(pipeline, rows, size=(32, 64))["negative"]["context"].any()
    assert pipeline.sample(prompts, key=KEY, steps=2, size=(16, 32)).shape == (2, 16, 32, 3)


def test_a_pipeline_is_a_tree_of_its_parameters(sd15):
    leaves, tree = jax.tree.flatten(sd15)
    count = sum(np.size(leaf) for leaf in leaves)
    parts = (sd15.params, sd15.texts[0].params, sd15.autoencoder.params)
    assert count == sum(np.size(leaf) for part in parts for leaf in flatten_dict(part).values())
    assert jax.tree.structure(jax.tree.unflatten(tree, leaves)) == tree
    assert "size=64" in repr(sd15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "is a FluxPipeline, which is not read; these are: StableDiffusionPipeline, "),
        ({"_class_name": "StableDiffusion3Pipeline"}, "is a StableDiffusion3Pipeline, which is not read"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "has no part tokenizer_2, text_encoder_2, which a Stable"),
    ],
)
def test_other_pipelines_are_refused(sd, tmp_path, change, message):
    folder = linked(tmp_path / "pipeline", sd)
    (folder / "model_index.json").write_text(json.dumps(change))
    with pytest.raises(ForeignError, match=message):
        cmjax.load_pipeline(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "text_encoder", "tokenizer"])
def test_a_missing_part_is_refused(sd, tmp_path, part):
    folder = linked(tmp_path / "pipeline", sd, **{part: None})
    with pytest.raises(ForeignError, match=f"has no part {part}, which a StableDiffusionPipeline needs"):
        cmjax.load_pipeline(folder)


def test_parts_that_do_not_fit_are_refused(sd, tmp_path):
    folder = linked(tmp_path / "pipeline", sd, text_encoder="sd2/text_encoder")
    with pytest.raises(ForeignError, match="the U-Net sees 40 features of tokens, and the other parts give 48"):
        cmjax.load_pipeline(folder)
    with pytest.raises(ForeignError, match=r"is no pipeline of diffusers: it has no model_index\.json"):
        cmjax.load_pipeline(tmp_path)
    with pytest.raises(ForeignError, match="prediction_type='sample' must be one of epsilon, v_prediction"):
        read_schedule({"prediction_type": "sample"}, "scheduler_config.json")
