"""MeanFlow: the mean velocity between any two times, from data alone.   [Geng et al. 2025, MeanFlow]

python -m cmjax.main --config=configs/digits_meanflow.py

Times reach further towards 0 and 1 than the paper's on ImageNet: samples go all the way from 1 to 0.
The squared distance stands in place of the adaptive one, with which samples were smoother; iMF keeps the latter.
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.model = common.linear_model("linear_flow")
    config.net.max_frequency, config.net.two_times = 8.0, True
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.75)",
            "distance": "l2",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    config.samples = common.flow_map_samples(every=config.samples.every, times=(1.0, 0.5))
    return config
