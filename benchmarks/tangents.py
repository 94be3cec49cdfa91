"""Tangents by central differences, against the exact ones by forward mode: what each step size is off by.

    python benchmarks/tangents.py --workdir=runs/digits_scm_ct
    python benchmarks/tangents.py --workdir=runs/digits_meanflow

For the run's network in float32 and in bfloat16, whose parameters and times are float32, the root mean square of the
error of g over that of g: sCM's tangent or, of a flow map, (t − s)·du/dt, which its target has.
"""

import argparse
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.core.derivatives import Derivative, central_difference
from cmjax.core.losses.flow_maps import mean_velocity
from cmjax.core.losses.tangents import tangent
from cmjax.core.paths import per_sample
from cmjax.nets.adapter import as_net
from cmjax.runs.trained import open_trained
from cmjax.system.files import to_path

STEPS = (0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 0.3)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the folder of a run of scm_ct, scm_cd or meanflow")
    parser.add_argument("--num", type=int, default=256, help="training images")
    options = parser.parse_args()
    print("| step | " + " | ".join(DTYPES) + " |\n|---|" + "---:|" * len(DTYPES))
    errors = {name: errors_of(options.workdir, dtype, options.num) for name, dtype in DTYPES.items()}
    for step in ("jvp", *STEPS):
        print(f"| {step} | " + " | ".join(f"{errors[name][step]:.2g}" for name in DTYPES) + " |")


def errors_of(workdir: str, dtype: Any, num: int) -> dict[Any, float]:
    """By step size, of the network in `dtype`, against the exact tangent of the float32 network."""
    trained = open_trained(to_path(workdir))
    run, spec = trained.run(), trained.model
    images = run.open_source("train").gather(np.arange(num))["image"]
    batch, _ = run.method.sample_batch(jax.random.key(0), images / jnp.float32(127.5) - 1, 0, {})
    params = trained.load().params

    def g(derivative: Derivative, dtype: Any) -> jax.Array:
        path = spec.path
        model = replace(spec.function, net=as_net(spec.module.clone(dtype=dtype)))
        t = batch.times.t
        velocity = path.conditional_velocity(batch.x0, batch.noise, t)
        x_t = batch.noised(path, t)
        if spec.kind == "flow_map":
            du_dt = mean_velocity(model, params, None, batch, x_t, along=velocity, derivative=derivative)[1]
            return per_sample(t - batch.times.destination, x_t) * du_dt
        return tangent(model, params, x_t, t, velocity, gain=jnp.cos, derivative=derivative, conditions={}).g

    compute = jax.jit(g, static_argnums=(0, 1))
    exact = compute(jax.jvp, jnp.float32)

    def error(derivative: Derivative) -> float:
        return float(jnp.sqrt(jnp.mean((compute(derivative, dtype) - exact) ** 2) / jnp.mean(exact**2)))

    return {"jvp": error(jax.jvp)} | {step: error(central_difference(step=step)) for step in STEPS}


if __name__ == "__main__":
    main()
