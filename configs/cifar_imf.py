"""iMF on CIFAR-10: MeanFlow with the derivative along the network's own velocity.   [Geng et al. 2025]

    python -m cmjax.main --config=configs/cifar_imf.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. The paper trains on ImageNet alone: its share of pairs apart, a half, in the
settings of cifar_meanflow.
"""

from configs import cifar_meanflow


def get_config(variant: str = ""):
    config = cifar_meanflow.get_config(variant)
    config.objective.name, config.objective.apart = "improved_mean_flow", 0.5
    del config.objective.blend
    return config
