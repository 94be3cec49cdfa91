"""A shortcut model of CIFAR-10: steps of any dyadic length, each two of half of it.   [Frans et al. 2025]

    python -m cmjax.main --config=configs/cifar_shortcut.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. The paper has no CIFAR-10 and so no figure: steps, fraction, target and its
clipping to [-4, 4] are those of its released code, without its guidance; network, augmentation and optimizer are
those of cifar_meanflow.
"""

from configs import cifar_meanflow, common


def get_config(variant: str = ""):
    config = cifar_meanflow.get_config(variant)
    config.objective = common.ConfigDict(
        {
            "name": "shortcut",
            "pairs": "dyadic(steps=128)",
            "fraction": 0.125,
            "distance": "l2",
            "target": "ema(mu=0.999)",
            "clip": 4.0,
        }
    )
    return config
