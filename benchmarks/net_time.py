"""How long the published networks take here, in seconds and in memory: JSON on standard output.

    python benchmarks/net_time.py                          # all
    python benchmarks/net_time.py --net ncsnpp_small       # one

For each network and batch: the forward pass, a CT step (the loss, its gradient, RAdam and one average, as the trainer
compiles it) and one-step sampling, each the median of some rounds after one call that is not counted; the program's
own memory as XLA plans it; and how long it took to compile. What others need on a quiet machine of 2 CPU cores stands
beside ours under "others", as it was measured there, for orientation.
"""

import argparse
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import step_time
from cmjax.core.model import BoundModel, Model
from cmjax.core.paths import ve
from cmjax.core.sampling import sample_fn
from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.adm import ADM
from cmjax.nets.unet import DDPMPP, NCSNPP, UNet
from cmjax.system.environment import prefer_fast_convolutions

SMALL = {"channels": 32, "channel_mult": (2, 2, 2), "blocks": 2}
NETS: dict[str, tuple[Any, int, dict[str, float]]] = {
    "ncsnpp_small": (
        UNet(**NCSNPP, **SMALL), 32, {"jax_forward_s": 1.4, "jax_ct_step_s": 4.4, "jax_memory_gb": 2.9},
    ),
    "ddpmpp_small": (
        UNet(**DDPMPP, **SMALL), 32, {"torch_ect_step_s": 1.9, "torch_sampling_of_64_s": 0.8},
    ),
    "ddpmpp": (UNet(**DDPMPP), 8, {"torch_ect_step_s": 8.72}),
    "ncsnpp": (UNet(**NCSNPP), 8, {}),
    "adm_64": (ADM(channels=64, channel_mult=(1, 2, 2), blocks=2, attention_resolutions=(16, 8)), 8, {}),
}  # fmt: skip
"""Module, batch, and what others need."""


def measure(module: Any, batch: int, rounds: int) -> dict[str, Any]:
    """Of one network at 32×32×3."""
    shape = (batch, 32, 32, 3)
    net, params = as_net(module), jax.tree.map(jnp.asarray, init_params(module, jax.random.key(0), shape[1:]))
    x, c_noise = jnp.ones(shape), jnp.zeros(batch)
    forward = jax.jit(net).lower(params, x, c_noise).compile()
    f = Model(net, ve, step_time.CONSISTENCY)
    flow_map = BoundModel(params, f, shape[1:], t_min=0.002, t_max=80.0, kind="consistency")
    sample = jax.jit(lambda flow_map, key: sample_fn(flow_map, key, (64, 32, 32, 3), times=(80.0,)))
    step, batches = step_time.training(net, params, shape)
    first = batches.at(0)
    measured = step_time.in_turns(
        {
            "forward": lambda: forward(params, x, c_noise),
            "ct_step": lambda: step(first),
            "sampling_of_64": lambda: sample(flow_map, jax.random.key(1)),
        },
        rounds,
    )
    plan = step.compiled.executable.memory_analysis()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": batch,
        **{f"{name}_s": round(float(np.median(times[:, 0])), 4) for name, times in measured.items()},
        "ct_step_memory_gb": round((plan.temp_size_in_bytes + plan.argument_size_in_bytes) / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(NETS), action="append", help="may be repeated; default all")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each program")
    options = parser.parse_args()
    prefer_fast_convolutions()
    report: dict[str, Any] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    report["load_before"] = os.getloadavg()[0]
    for name in options.net or NETS:
        module, batch, others = NETS[name]
        report[name] = measure(module, batch, options.rounds) | {"others": others}
    print(json.dumps(report | {"load_after": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
