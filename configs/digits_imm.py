"""IMM: groups of samples, whose distribution at the end is that of samples from a little lower.   [Zhou et al. 2025]

python -m cmjax.main --config=configs/digits_imm.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.model.t_min, config.model.t_max = 0.006, 0.994
    config.objective = common.ConfigDict(
        {
            "name": "imm",
            "times": "lognormal(mean=0.0, std=1.6)",
            "gap": "level(k=11)",
            "group": 4,
            "kernel": "laplace(width=0.5)",
            "weight": "sigmoid(shift=5.0, power=1.0)",
            "target": "stop_gradient",
        }
    )
    config.samples = common.flow_map_samples(every=config.samples.every, times=(0.994, 0.5))
    return config
