"""iMF on MNIST, 28×28, from data and their labels: digits in one evaluation.   [Geng et al. 2025, iMF]

    python -m cmjax.main --config=configs/mnist_imf.py --config.data.data_dir=~/tensorflow_datasets

The network is mnist_ect's. Times reach further towards 0 and 1 than the paper's on ImageNet, as in digits_meanflow.
"""

from configs import common, mnist_ect


def get_config():
    config = mnist_ect.get_config()
    config.steps, config.batch_size = 3300, 64
    config.model = common.linear_model("linear_flow")
    config.net.two_times = True
    config.objective = common.ConfigDict(
        {
            "name": "imf",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.75)",
            "distance": "adaptive(p=0.75, c=0.001)",
            "guidance": 1.0,
        }
    )
    config.samples = common.flow_map_samples(every=config.samples.every, times=(1.0, 0.5))
    return config
