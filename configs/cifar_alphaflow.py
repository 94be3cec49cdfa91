"""α-Flow on CIFAR-10: from flow matching to MeanFlow as α falls.   [Zhang et al. 2025, α-Flow]

    python -m cmjax.main --config=configs/cifar_alphaflow.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. The paper has no CIFAR-10 and so no figure: times (the first half of the batch
learns flow matching, at a single draw of t), α and its weight, and the clipping of the target to [-4, 4] are those of
the released code for ImageNet, without its guidance; network, augmentation and optimizer are cifar_meanflow's. From 71%
of the run on α is 0, and the loss is MeanFlow's.
"""

from configs import cifar_meanflow, common


def get_config(variant: str = ""):
    config = cifar_meanflow.get_config(variant)
    config.objective = common.ConfigDict(
        {
            "name": "alphaflow",
            "times": "logit_normal(mean=-0.4, std=1.0)",
            "times_s": "logit_normal(mean=-0.4, std=1.0)",
            "pairs": "sorted(apart=0.5, exact=True, single=True)",
            "alpha": "sigmoid",
            "weight": "adaptive(c=0.001)",
            "clip": 4.0,
        }
    )
    return config
