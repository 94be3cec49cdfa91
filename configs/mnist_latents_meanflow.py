"""MeanFlow on MNIST's latents, from data alone, with mnist_latents_sit's transformer.   [Geng et al. 2025, MeanFlow]

    python -m cmjax.main --config=configs/mnist_latents_meanflow.py --config.data.data_dir=latents

docs/howto/latents.md says how the latents are made. Times reach further towards 0 and 1 than the paper's on ImageNet,
and the squared distance stands in place of the adaptive one, as in digits_meanflow.
"""

from configs import common, mnist_latents_sit


def get_config():
    config = mnist_latents_sit.get_config()
    config.steps = 2000
    config.data.label_dropout = 0.0
    config.model = common.linear_model("linear_flow")
    config.net.two_times = True
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "distance": "l2",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    config.samples = common.flow_map_samples(every=0, times=(1.0, 0.5))
    return config
