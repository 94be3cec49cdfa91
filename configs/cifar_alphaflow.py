"""α-Flow on CIFAR-10: from flow matching to MeanFlow as α falls.   [Zhang et al. 2025]

    python -m cmjax.main --config=configs/cifar_alphaflow.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. The paper has no CIFAR-10: the settings are those of cifar_meanflow, and α ends
at 0.005, which is chosen here.
"""

from configs import cifar_meanflow


def get_config(variant: str = ""):
    config = cifar_meanflow.get_config(variant)
    config.objective.name, config.objective.alpha = "alpha_flow", "sigmoid(floor=0.005)"
    del config.objective.guidance, config.objective.blend
    return config
