"""MeanFlow on CIFAR-10 for a laptop: the mean velocity between any two times.   [Geng et al. 2025, MeanFlow]

    python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_small_meanflow.py --config.data.data_dir=~/tensorflow_datasets

It needs no teacher, but starts from one: with the preconditioning `edm_flow` the teacher's network gives the velocity
of the linear path, which is the mean velocity between two times that are the same.
"""

from configs import cifar_small_ect, common


def get_config():
    config = cifar_small_ect.get_config()
    config.steps = 500
    config.data.label_dropout = 0.1
    config.model = common.linear_model("edm_flow")
    config.net.two_times = True
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=-0.4, std=1.4)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "distance": "l2",
            "guidance": 1.0,
            "blend": 0.5,
        }
    )
    config.samples = common.flow_map_samples(every=500, times=(1.0, 0.5))
    return config
