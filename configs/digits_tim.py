"""TiM: a flow map on the TrigFlow path, by differences along the line of data and noise.   [Wang et al. 2025, TiM]

python -m cmjax.main --config=configs/digits_tim.py

With the paper's adaptive distance of p = 1 samples were smoother: FD 3.00 in one evaluation, 2.28 in two.
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.model = common.trig_model("trig_flow")
    config.net.max_frequency = 4.0
    config.objective = common.ConfigDict(
        {
            "name": "tim",
            "times": "lognormal(mean=0.0, std=1.6)",
            "times_s": "lognormal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5, exact=True, whole=0.1)",
            "distance": "adaptive(p=0.5, c=0.001)",
            "weight": "inverse_time_gap(c=1.0)",
            "derivative": "central_difference(step=0.005)",
            "target": "stop_gradient",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    config.samples = common.flow_map_samples(every=config.samples.every, times=(1.56454, 0.8))
    return config
