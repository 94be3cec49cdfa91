"""Methods by their names: a wrong setting of any is one message, and a run of stages is compiled once."""

import copy
import importlib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate_method

from cmjax.config.fields import ConfigError
from cmjax.config.methods import METHODS
from cmjax.config.run import read_run
from cmjax.core import losses
from cmjax.runs.train_step import inputs_of
from configs import common

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32)
LINEAR = common.linear_model("linear", t_min=0.001).to_dict()
TRIG = common.trig_model().to_dict()
DDPM = {"path": "ddpm", "preconditioning": "lcm", "sigma_data": 0.5, "t_min": 0.001, "t_max": 0.999, "rho": 7.0}


def changed(config, changes):
    """The configuration with other values of fields, named with the sections they stand in; None removes one."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *sections, field = name.split(".")
        section = config
        for part in sections:
            section = section[part]
        if value is None:
            del section[field]
        else:
            section[field] = value
    return config


def digits_recipes():
    """A configuration of every method: that of its digits recipe, or of one for the same data by a few changes."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "configs").glob("digits_*.py")):
        config = importlib.import_module(f"configs.{path.stem}").get_config().to_dict()
        name = config["objective"]["name"]
        if name not in found or path.stem == f"digits_{name}":
            found[name] = config
    found["edm2"] = changed(found["denoising"], {"objective.name": "edm2", "net.weight_head": 4})
    grid = dict.fromkeys(("objective.curriculum", "objective.intervals"))
    latent = {"objective.name": "lcm", "objective.pairs": "skipping(steps=100, skip=5)", "model": DDPM}
    found["lcm"] = changed(found["guided_cd"], grid | latent | {"samples.times": (0.9,), "objective.weight": "uniform"})
    found["cmt"] = changed(found["cmt"], {"objective.grid": "logarithmic(steps=4)"})
    small = {"net.width": 8, "net.depth": 1, "net.embedding_width": 8, "net.frequencies": 4, "batch_size": 8}
    return {name: changed(config, small) for name, config in found.items()}


RECIPES = digits_recipes()
DIGITS = [path.stem for path in (Path(__file__).parents[1] / "configs").glob("digits_*.py")]
ON_VE = ("ct", "cd", "ict", "ect", "sct", "tcm", "multistep_ct", "guided_cd", "pd")
FLOWS = ("meanflow", "imf", "shortcut", "alphaflow")
WRONG = [
    *((name, {"model": LINEAR}, "objective.name=", "needs config.model.path=ve") for name in ON_VE),
    *((name, {"model": TRIG}, "model.path=", "needs linear") for name in ("shortcut", "alphaflow")),
    *((name, {"model": TRIG}, "model.preconditioning=", "one of trig_flow") for name in ("meanflow", "imf", "lsd")),
    ("rcgm", {"model": TRIG | {"preconditioning": "trig_flow"}}, "objective.name=", "needs config.model.path=linear"),
    *((name, {"net.two_times": False}, "net.two_times=", "two times") for name in FLOWS),
    *(
        (name, {"objective.pairs": "sorted(apart=1.5)"}, "objective.pairs=", "apart must")
        for name in ("meanflow", "imf", "alphaflow")
    ),
    *((name, {"objective.times": "uniform(rho=0)"}, "objective.times=", "rho must be") for name in ("meanflow", "sct")),
    *((name, {"samples.times": (80.0, 0.5)}, "samples.times=", r"must lie in \[") for name in FLOWS),
    *((name, {"objective.guidance": 2.0}, "objective.guidance=", "class_cond") for name in FLOWS),
    *((name, {"objective.guidance_interval": (0.8, 0.2)}, "objective.guidance_interval=", "first and the last time")
      for name in ("meanflow", "imf", "alphaflow")),
    *((name, {"objective.clip": 0.0}, "objective.clip=", "must be above 0") for name in ("shortcut", "alphaflow")),
    ("imf", {"objective.guidance_interval": "drawn"}, "objective.name=", "set config.net.guided_interval"),
    ("imf", {"objective.keeps_label": True}, "objective.name=", "set config.net.class_conditional"),
    ("imf", {"model.preconditioning": "linear_gap"}, "net.two_times=", "linear_gap gives it one time"),
    ("imf", {"net.name": "dit", "net.second_time_from": 1}, "net.second_time_from=", "preconditioning=linear_ends"),
    ("imf", {"net.velocity_head": True, "model.preconditioning": "edm_flow"}, "net.velocity_head=", "not with precond"),
    ("imf", {"net.guided_interval": True}, "net.guided_interval=", "gives no interval of guidance"),
    ("meanflow", {"net.velocity_head": True}, "net.velocity_head=", "trains no second head"),
    ("meanflow", {"objective.drops_first": True}, "objective.name=", "set config.net.class_conditional"),
    ("imf", {"objective.drops_first": True, "net.class_conditional": True}, "objective.drops_first=", "exact=True"),
    ("meanflow", {"objective.keeps_label": True}, "objective.keeps_label", "nothing reads this"),
    ("guided_cd", {"objective.guidance": "power(low=3.0, high=2.0)"}, "objective.guidance=", "low must be at most"),
    ("guided_cd", {"objective.guidance": "power(low=0.0, high=2.0)"}, "objective.guidance=", "low must be above 0"),
    *(
        (name, {f"objective.{field}": ""}, f"objective.{field}=", "must name the workdir")
        for name, field in [("cd", "teacher"), ("guided_cd", "teacher"), ("lcm", "teacher"), ("scm_cd", "teacher"),
                            ("continuous_cd", "teacher"), ("tcm", "first_stage")]
    ),
    ("lcm", {"model.preconditioning": "lcm(prediction='x0')"}, "model.preconditioning=", "epsilon, v"),
    *((name, {"net.guided": False}, "objective.name=", "set config.net.guided") for name in ("guided_cd", "lcm")),
    *(
        (name, {"net.class_conditional": False}, "objective.name=", "set config.net.class_conditional")
        for name in ("guided_cd", "lcm")
    ),
    ("scm_cd", {"objective.guidance": (1.0, 2.0)}, "objective.name=", "set config.net.guided"),
    ("scm_cd", {"objective.guidance": (1.0, 2.0), "net.guided": True}, "objective.name=", "net.class_conditional"),
    ("guided_cd", {"objective.guidance": (3.0, 1.0)}, "objective.guidance=", "smallest and the largest"),
    ("lcm", {"objective.guidance": (1.0,)}, "objective.guidance=", "smallest and the largest"),
    ("denoising", {"data.label_dropout": 0.1, "net.class_conditional": False}, "data.label_dropout=", "no labels"),
    ("denoising", {"data.label_dropout": 1.0, "net.class_conditional": True}, "data.label_dropout=", "below 1"),
    ("denoising", {"objective.times": "lognormal(mean=0.0, std=0)"}, "objective.times=", "std must be above 0, not 0"),
    ("denoising", {"objective.times": "logit_normal(mean='x', std=1.0)"}, "objective.times=", "'x'"),
    ("denoising", {"objective.times": "student(df=1, scale=1, highest=0.5)"}, "objective.times=", "highest must be"),
    ("denoising", {"model.t_min": 0.0}, "model.t_min=", "above 0"),
    ("denoising", {"model": TRIG}, "model.t_min=", "above 0"),
    *(
        (name, {"net": common.ddpmpp(attention="cudnn", **net).to_dict()}, "objective.name=", "net.attention=xla")
        for name, net in [("scm_ct", {}), ("continuous_ct", {}), ("meanflow", {"two_times": True})]
    ),
    ("meanflow", {"model.t_max": 80.0}, "model.t_max=", "at most 1 on the path linear"),
    ("scm_ct", {"model.t_max": 80.0}, "model.t_max=", "at most 1.5708 on the path trig"),
    ("scm_ct", {"model.preconditioning": "trig_edm"}, "model.t_min=", "above 0 with preconditioning trig_edm"),
    ("ct", {"net.guided": True}, "net.guided=", "gives no scale of guidance"),
    ("scm_cd", {"net.guided": True}, "net.guided=", "gives no scale of guidance"),
    ("ct", {"samples.guidance": 2.0}, "samples.guidance=", "set config.net.class_conditional"),
    ("continuous_ct", {"objective.weight": "inverse_gap"}, "objective.weight=", "both points meet"),
    ("denoising", {"model": LINEAR, "objective.weight": "karras"}, "objective.weight=", "of the path ve, not linear"),
    ("denoising", {"objective.times": "logit_normal(mean=0.0, std=1.0)"}, "objective.times=", "not of the path ve"),
    ("denoising", {"objective.weight": "inverse_cout"}, "objective.weight=", "did you mean inverse_c_out"),
    ("edm2", {"net.weight_head": 0}, "objective.name=", "set config.net.weight_head"),
    ("ct", {"objective.curriculum": "constant(num_scales=1)"}, "objective.curriculum=", "at least 2 points"),
    ("ct", {"objective.curriculum": "doubling(s0=10, s1=5)"}, "objective.curriculum=", "s1 must be at least"),
    ("ct", {"objective.intervals": "lognormal(mean=0.0, std=0)"}, "objective.intervals=", "std must be above 0, not 0"),
    ("ct", {"objective.target": "ema(mu=1.5)"}, "objective.target=", "mu must be below 1, not 1.5"),
    ("ct", {"objective.distance": "pseudo_huber(c='x')"}, "objective.distance=", "'x'"),
    ("ct", {"objective.stages": "equal(count=8)"}, "objective.stages", "nothing reads this"),
    ("cd", {"objective.ode_step": "huen"}, "objective.ode_step=", "did you mean heun"),
    ("ict", {"objective.intervals": "lognormal(mean='x', std=1.0)"}, "objective.intervals=", "'x'"),
    ("ict", {"objective.distance": "l2"}, "objective.distance", "nothing reads this"),
    ("ect", {"objective.stages": "equal(count=0)"}, "objective.stages=", "count must be at least 1"),
    ("ect", {"objective.gap": "shrinking(q=1)"}, "objective.gap=", "q must be above 1"),
    ("ect", {"objective.gap": "shrinking(q=2, k='x')"}, "objective.gap=", "'x'"),
    ("sct", {"objective.gap": 'shrinking(q=2, adjust="no")'}, "objective.gap=", "must be one of sigmoid, constant"),
    ("tcm", {"objective.fraction": 1.5}, "objective.fraction=", "below 1"),
    ("tcm", {"grad_accumulation": 8}, "grad_accumulation=", "must leave samples of both kinds"),
    ("shortcut", {"grad_accumulation": 8}, "grad_accumulation=", "must leave samples of both kinds"),
    ("tcm", {"objective.fraction": 0.0}, "objective.fraction=", "above 0"),
    ("tcm", {"objective.boundary": 0.0}, "objective.boundary=", "above 0"),
    ("multistep_ct", {"objective.segments": 0}, "objective.segments=", "at least 1"),
    ("multistep_ct", {"objective.segments": float("inf")}, "objective.segments=", "a finite number"),
    ("lcm", {"objective.pairs": "skipping(steps=100, skip=100)"}, "objective.pairs=", "skip must lie between"),
    ("lcm", {"model": RECIPES["guided_cd"]["model"]}, "objective.name=", "config.model.path=ddpm or vp"),
    ("pd", {"objective.curriculum": "halving(start=12, end=8)"}, "objective.curriculum=", "power of two"),
    ("pd", {"steps": 3}, "objective.curriculum=", "at least the number of stages"),
    ("continuous_ct", {"objective.times": "uniform(rho='x')"}, "objective.times=", "'x'"),
    ("continuous_cd", {"objective.weight": "karas"}, "objective.weight=", "did you mean karras"),
    ("scm_ct", {"model": RECIPES["ct"]["model"]}, "objective.name=", "needs config.model.path=trig or linear"),
    ("scm_ct", {"net.weight_head": 0}, "objective.name=", "set config.net.weight_head"),
    ("scm_ct", {"objective.warmup": "ramp(length=-1)"}, "objective.warmup=", "at least 0"),
    ("scm_ct", {"objective.normalize": "unit_norm(c='x')"}, "objective.normalize=", "'x'"),
    ("meanflow", {"objective.guidance": 0.0}, "objective.guidance=", "above 0"),
    ("meanflow", {"objective.blend": 0.5}, "objective.blend=", "class_conditional"),
    ("meanflow", {"objective.blend": -0.5}, "objective.blend=", "at least 0"),
    *(
        (name, {f"objective.{field}": 0.5, "net.class_conditional": True}, "data.label_dropout=", f"{field}=0.5 needs")
        for name, field in [("meanflow", "guidance"), ("meanflow", "blend"), ("imf", "guidance")]
    ),
    ("imf", {"objective.guidance": (1.0, 4.0), "net.class_conditional": True, "net.guided": True},
     "data.label_dropout=", "without a label"),
    ("imf", {"objective.blend": 0.0}, "objective.blend", "nothing reads this"),
    ("shortcut", {"objective.pairs": "dyadic(steps=100)"}, "objective.pairs=", "power of two"),
    ("shortcut", {"objective.fraction": 1.0}, "objective.fraction=", "between 0 and 1"),
    ("alphaflow", {"objective.alpha": "sigmoid(clamp=0)"}, "objective.alpha=", "clamp must be above 0"),
    ("alphaflow", {"objective.weight": "adaptive(c='x')"}, "objective.weight=", "'x'"),
    ("imf", {"objective.guidance": (1.0, 4.0)}, "objective.name=", "set config.net.guided"),
    ("imf", {"objective.guidance_interval": (0.5, 0.2)}, "objective.guidance_interval=", "first and the last"),
    ("continuous_cd", {"objective.distance": "pseudo_huber(c=0.1)"}, "objective.distance=", "linf, lpips, norm"),
    ("continuous_cd", {"objective.stop_gradient": "no"}, "objective.stop_gradient=", "True or False"),
    ("alphaflow", {"objective.alpha": "sigmoid(steepness='x')"}, "objective.alpha=", "'x'"),
    ("meanflow", {"objective.tangent_blend": 1.5}, "objective.tangent_blend=", "at most 1"),
    ("meanflow", {"objective.weight": "karras"}, "objective.weight=", "uniform, tan_gap"),
    ("imf", {"objective.tangent_blend": -1}, "objective.tangent_blend=", "at least 0"),
    ("tvm", {"model.preconditioning": "scaled_flow"}, "net.guided=", "must be True"),
    ("dmf", {"objective.times_equal": "logit_normal(mean=0.0, std=0.0)"}, "objective.times_equal=", "std must be"),
    ("tvm", {"objective.pairs": "ending(mean=-0.4, std=1.0, apart=2)"}, "objective.pairs=", "apart must"),
    ("anyflow", {"objective.weight": "towards_noise(shift=0)"}, "objective.weight=", "shift must be above 0"),
    ("anyflow", {"objective.guidance": 3.0}, "objective.guidance=", "class_cond"),
    ("denoising", {"objective.times": "uniform(shift=2.0)"}, "objective.times=", "shift=2.0 is of times up to 1"),
    ("pmf", {"objective.perceptual": "lpip"}, "objective.perceptual=", "did you mean lpips"),
    ("pmf", {"objective.t_least": 2.0}, "objective.t_least=", "at most 1"),
    ("tim", {"objective.weight": "inverse_tan_gap(c=0)"}, "objective.weight=", "c must be above 0"),
    ("tim", {"objective.pairs": "sorted(apart=0.5, whole=2)"}, "objective.pairs=", "whole must be at most 1"),
    ("soflow", {"objective.gap": "falling(start=0.1, end=0.5)"}, "objective.gap=", "0 < end <= start"),
    ("soflow", {"objective.guidance": 2.0}, "objective.guidance=", "class_cond"),
    ("lsd", {"objective.learned_weight": True}, "objective.name=", "set config.net.weight_head"),
    ("psd", {"objective.split": "half"}, "objective.split=", "uniform, middle"),
    ("esd", {"objective.pairs": "sorted(apart=1.5)"}, "objective.pairs=", "apart must"),
    ("tvm", {"objective.guidance": (1.0, 4.0)}, "objective.name=", "set config.net.guided"),
    ("facm", {"objective.power": 0.0}, "objective.power=", "above 0"),
    ("facm", {"model.preconditioning": "linear_expanded"}, "net.two_times=", "gives it one time"),
    ("dmf", {"net.weight_head": 0}, "objective.name=", "set config.net.weight_head"),
    ("rcgm", {"objective.order": 0}, "objective.order=", "at least 1"),
    ("rcgm", {"objective.weight": "karras"}, "objective.weight=", "uniform, tan_gap"),
    ("ayf", {"objective.teacher": ""}, "objective.teacher=", "must name the workdir"),
    ("ctm", {"objective.num_scales": 2}, "objective.num_scales=", "at least 3"),
    ("ctm", {"model": RECIPES["meanflow"]["model"]}, "objective.name=", "needs config.model.path=ve"),
    ("imm", {"objective.group": 3}, "batch_size=8", "a part, of 8 samples .*, must hold whole groups of 3"),
    ("imm", {"grad_accumulation": 4}, "batch_size=8", "a part, of 2 samples .*, must hold whole groups of 4"),
    ("imm", {"objective.group": 0}, "objective.group=", "at least 1"),
    ("imm", {"model.t_max": 1.0}, "objective.gap=", "finite at t_max=1"),
    ("imm", {"objective.kernel": "laplace(width=0)"}, "objective.kernel=", "width must be above 0"),
    ("imm", {"objective.weight": "karras"}, "objective.weight=", "uniform, sigmoid"),
    ("imm", {"objective.keeps_label": True}, "objective.name=", "set config.net.class_conditional"),
    ("cmt", {"objective.grid": "logarithmic(steps=16)"}, "batch_size=8", "whole groups of 16"),
    ("cmt", {"objective.teacher": ""}, "objective.teacher=", "must name the workdir"),
    ("cmt", {"objective.trajectory": "dpmpp_2m"}, "objective.trajectory=", "dpmpp_3m, euler, heun"),
    ("cmt_map", {"objective.trajectory": "dpmpp_3m"}, "objective.trajectory=", "no end at these times"),
    ("cmt_map", {"objective.grid": "logarithmic(steps=4)"}, "objective.grid=", "0 < t_min < t_max"),
    ("cmt_map", {"objective.group": 16}, "batch_size=8", "whole groups of 16"),
]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_read_from_a_recipe(name):
    assert read_run(RECIPES[name]).method.times is not None
    assert name in {case[0] for case in WRONG}


@pytest.mark.parametrize(("name", "changes", "field", "problem"), WRONG)
def test_a_wrong_setting_is_one_message_that_names_its_field(name, changes, field, problem):
    with pytest.raises(ConfigError, match=problem) as raised:
        read_run(changed(RECIPES[name], changes))
    assert str(raised.value).startswith(f"config.{field}")


@pytest.mark.parametrize(
    ("name", "settings", "schedule", "values"),
    [
        (
            "ect",
            {"objective.stages": "equal(count=3)", "objective.gap": "shrinking(q=2, k=0)"},
            "stage",
            [0, 0, 1, 1, 2, 2],
        ),
        ("pd", {"objective.curriculum": "halving(start=4, end=1)"}, "num_scales", [5, 5, 3, 3, 2, 2]),
        (
            "alphaflow",
            {"objective.alpha": "sigmoid(steepness=4, clamp=0.4)"},
            "alpha",
            [1, 1, 1, 0.5, 0, 0],
        ),
        ("scm_ct", {"objective.warmup": "ramp(length=4)"}, "tangent_warmup", [0, 0.25, 0.5, 0.75, 1, 1]),
    ],
)
def test_all_stages_of_a_run_are_one_compilation(name, settings, schedule, values):
    """With one key and batch the loss is that of the stage: equal where the schedule is, another where it is not."""
    run = read_run(changed(RECIPES[name], {"steps": 6, "init_from": "", **settings}))
    model = run.make_model(None)
    traced = []

    @jax.jit
    def evaluate(params, target_params, x0, step):
        traced.append(step)
        losses = evaluate_method(
            run.method, model.function, params, target_params, {}, jax.random.key(1), x0, step, {}
        )  # fmt: skip
        return losses.mean(), run.method.schedules[schedule](step)

    fresh = model.init(jax.random.key(0), (8, 8, 1))  # which answers 0, whatever its input
    params, before = (jax.tree.map(lambda leaf, by=by: leaf + by, fresh) for by in (0.1, 0.2))
    values_of_loss, seen = zip(*(evaluate(params, before, IMAGES, jnp.asarray(step)) for step in range(6)), strict=True)
    assert len(traced) == 1
    np.testing.assert_allclose(seen, values, atol=1e-4)
    for i in range(1, 6):
        assert (values_of_loss[i] == values_of_loss[i - 1]) == (seen[i] == seen[i - 1])


def test_noise_times_and_dropout_are_independent_of_each_other():
    """What a step's key gives: a batch, whose noise is a unit Gaussian, and another key for the dropout masks."""
    method, key = read_run(RECIPES["guided_cd"]).method, jax.random.key(0)
    batch, dropout_key = method.sample_batch(key, jnp.zeros((64, 8, 8, 1)), jnp.asarray(0), {})
    noise, dropout = np.asarray(batch.noise).ravel(), np.asarray(jax.random.normal(dropout_key, (64 * 64,)))
    assert abs(np.corrcoef(noise, dropout)[0, 1]) < 4 / 64
    assert noise.std() == pytest.approx(1, abs=4 / np.sqrt(2 * len(noise)))
    assert len(np.unique(batch.conditions["guidance"])) == 64
    assert len(np.unique(batch.times.t)) > 1


RELEASED = {
    "model.preconditioning": "linear_gap", "net.two_times": False, "net.class_conditional": True, "net.guided": True,
    "net.guided_interval": True, "net.velocity_head": True, "data.label_dropout": 0.5, "objective.drops_first": True,
    "objective.guidance": "power(low=1.0, high=8.0, power=1.0)", "objective.guidance_interval": "drawn",
    "objective.keeps_label": True, "objective.pairs": "sorted(apart=0.5, exact=True)",
}  # fmt: skip


def test_a_recipe_may_have_all_of_the_released_imf():
    """The network is given t − s, the scale and the interval; the first samples have s = t and lose their labels."""
    run = read_run(changed(RECIPES["imf"], RELEASED))
    model, seen = run.make_model(10), {}
    inputs = inputs_of(run, model)({"image": jnp.zeros((8, 8, 8, 1), jnp.uint8), "label": jnp.arange(8)}, KEY)[1]
    np.testing.assert_array_equal(inputs["kept_label"], jnp.arange(8))
    dropped = inputs["label"] < 0
    np.testing.assert_array_equal(dropped, jnp.arange(8) < jnp.sum(dropped))
    batch, key = run.method.sample_batch(KEY, jnp.asarray(IMAGES), jnp.asarray(0), inputs)
    equal = batch.times.t == batch.times.s
    np.testing.assert_array_equal(equal, jnp.arange(8) < 4)
    first, last = batch.conditions["interval"].T
    np.testing.assert_array_equal((first == 0) & (last == 1), equal)
    assert jnp.all((batch.conditions["guidance"] >= 1) & (batch.conditions["guidance"] <= 8))

    def net(params, x, c_noise, **inputs):
        seen.setdefault("c_noise", []).append(c_noise)
        return model.function.net(params, x, c_noise, **inputs)

    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(KEY, (8, 8, 1)))
    each = run.method.loss(replace(model.function, net=net), params, key, batch, **run.method.arguments(0, params, {}))
    assert each.shape == (8,)
    assert np.all(np.isfinite(each))
    np.testing.assert_array_equal(seen["c_noise"][0], 0.0)
    x, time = jnp.asarray(IMAGES), jnp.ones(8)
    out = model.function(params, x, time, 0 * time, label=jnp.arange(8), guidance=2 * time)
    assert out.shape == x.shape, "what samples sees one head, and all times guided"


def test_a_method_has_one_name():
    """Of its loss, its objective and its recipes; denoising has a recipe for each path."""
    assert set(METHODS) == set(losses.__all__)
    named = {name.removeprefix("digits_") for name in DIGITS} - {"edm", "trig", "flow", "classes"}
    # ECT and MeanFlow from what CMT has learned; MeanFlow with the times and the derivative of another paper
    named -= {"cmt_ect", "cmt_meanflow", "mf_rae"}
    assert named == set(METHODS) - {"denoising", "edm2", "lcm"}


def test_a_run_of_before_is_read_by_its_old_name():
    assert read_run(changed(RECIPES["pd"], {"objective.name": "progressive"})).method.target_rate is not None


@pytest.mark.parametrize("name", ["scm_cd", "ayf"])
def test_a_guided_student_has_a_teacher_that_is_guided_by_its_scale(name):
    """The teacher is asked with the label and without, and takes no scale itself."""
    changes = {"objective.guidance": (2.0, 3.0), "net.guided": True, "net.class_conditional": True,
               "data.label_dropout": 0.1}  # fmt: skip
    run = read_run(changed(RECIPES[name], changes))
    model, labels = run.model_spec.make(10), []

    def teacher(x, t, *, label):
        labels.append(label)
        return 0.5 * x

    params = model.init(jax.random.key(0), (8, 8, 1))
    x0, step = jnp.zeros((8, 8, 8, 1)), jnp.zeros((), int)
    batch, key = run.method.sample_batch(jax.random.key(1), x0, step, {"label": jnp.arange(8)})
    arguments = {**run.method.arguments(step, params, {}), "teacher": teacher}
    each = run.method.loss(model.function, params, key, batch, **arguments)
    assert np.all(np.isfinite(each))
    assert [label.tolist() for label in labels] == [list(range(8)), [-1] * 8]
