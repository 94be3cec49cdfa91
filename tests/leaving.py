"""Small runs of networks that are not trained, which tests export; and what cmjax samples of the same noise.

`python -m tests.leaving mlp FOLDER` exports one there, and compares the bits.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax import export

import cmjax
from cmjax.cli import exporting
from cmjax.config.methods import read_model
from cmjax.runs.weights import write_model
from configs import digits_classes, digits_ct, digits_guided_cd, digits_meanflow, digits_scm_ct

NETS = {
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
    "unet": {"name": "unet", "channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,)},
    "adm": {"name": "adm", "channels": 32, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,),
            "head_channels": 32},
    "edm2": {"name": "edm2", "channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,),
             "head_channels": 16},
    "imf_dit": {"name": "imf_dit", "width": 16, "depth": 2, "heads": 2, "head_depth": 1},
    "dit": {"name": "dit", "patch": 2, "width": 32, "depth": 2, "heads": 2},
}  # fmt: skip
KINDS = {
    "mlp": (digits_ct, "mlp", 0),
    "unet": (digits_ct, "unet", 0),
    "adm": (digits_ct, "adm", 0),
    "edm2": (digits_ct, "edm2", 0),
    "imf_dit": (digits_ct, "imf_dit", 0),
    "dit": (digits_ct, "dit", 10),
    "trig": (digits_scm_ct, None, 0),
    "flow": (digits_meanflow, None, 0),
    "guided": (digits_guided_cd, None, 10),
    "teacher": (digits_classes, None, 10),
}
"""A run: its recipe, its network unless that is the recipe's, and its number of classes."""


def write_run(folder, name):
    recipe, net, classes = KINDS[name]
    config = recipe.get_config().to_dict()
    shared = {field: config["net"][field] for field in ("class_conditional", "dtype", "two_times", "dropout")}
    small = {"width": 16, "depth": 1} if net is None else {**shared, **NETS[net]}
    config["net"] = {**(config["net"] if net is None else {}), **small}
    if classes:
        config["net"]["class_conditional"] = True
    params = read_model(config, classes or None).init(jax.random.key(0), (8, 8, 1))
    params = jax.tree.map(lambda x: np.float32(x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)), params)
    write_model(folder, config, (8, 8, 1), classes or None, params, imported=None, option="")
    return folder


def noises(num, count=0):
    """Noise to start from and, of a sampler that adds `count` noises, those."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((1 + count, num, 8, 8, 1), dtype=np.float32)
    return (drawn[0], drawn[1:]) if count else (drawn[0],)


def sampled(run, times, noise, added=None, **conditions):
    """What `sample_fn` gives under jit of this noise."""
    flow_map = cmjax.load(run)

    # times are an argument, as --mode=sample has them: constants may be computed in other arithmetic
    @jax.jit
    def sample(params, times, noise, added, conditions):
        bound = replace(flow_map, params=params)
        start = bound.path.b(times[0]) * noise
        return cmjax.sample_fn(
            bound, jax.random.key(0), noise.shape, times=times, start=start, noises=added, **conditions
        )

    added = np.zeros((0, *noise.shape), np.float32) if added is None else added
    return np.asarray(sample(flow_map.params, np.float32(times), noise, added, conditions))


def compare(name, folder):
    run, classes = write_run(folder / "run", name), KINDS[name][2]
    several = ((1.5,), (1.5, 1.1)) if name == "trig" else ((80.0,), (80.0, 0.8))
    # the quick test has one of them
    for levels in several[1:] if name == "mlp" else several:
        exporting.run(run, "stablehlo", str(folder / "x.stablehlo"), times=",".join(map(str, levels)))
        program = export.deserialize(bytearray((folder / "x.stablehlo").read_bytes()))
        for num in (5,) if name == "mlp" else (1, 5):
            drawn = noises(num, len(levels) - 1)
            label = {"label": np.arange(num, dtype=np.int32)} if classes else {}
            ours = sampled(run, levels, *drawn, **label)
            np.testing.assert_array_equal(program.call(*drawn, *label.values()), ours)
    print("the same bits")


if __name__ == "__main__":
    compare(sys.argv[1], Path(sys.argv[2]))
