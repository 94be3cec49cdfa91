"""SCT on CIFAR-10: ECT with the target's variance reduced by the rest of the batch.   [Wang et al. 2024]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_sct.py --config.data.data_dir=~/tensorflow_datasets

Cost: 200,000 updates of 128 images. The settings are those of cifar_ect, so that the target alone tells the two apart;
the paper, which has a gentler curriculum as well, is not followed there.
"""

from configs import cifar_ect


def get_config(variant: str = ""):
    config = cifar_ect.get_config(variant)
    config.objective.name = "sct"
    return config
