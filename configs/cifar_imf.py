"""iMF on CIFAR-10: MeanFlow with the derivative along the network's own velocity.   [Geng et al. 2025, iMF]

    python -m cmjax.main --config=configs/cifar_imf.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. The paper trains on ImageNet alone: times and distance are those of its released
code, whose second head for the velocity is left out; network and optimizer are cifar_meanflow's.
"""

from configs import cifar_meanflow


def get_config(variant: str = ""):
    config = cifar_meanflow.get_config(variant)
    config.objective.update(
        {
            "name": "imf",
            "times": "logit_normal(mean=-0.4, std=1.0)",
            "times_s": "logit_normal(mean=-0.4, std=1.0)",
            "pairs": "sorted(apart=0.5)",
            "distance": "adaptive(p=1.0, c=0.01)",
        }
    )
    del config.objective.blend
    return config
