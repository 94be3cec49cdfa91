"""A class-conditional EDM diffusion model of CIFAR-10, to be guided: a tenth of the labels is left out.

    python -m cmjax.main --config=configs/cifar_classes.py --config.data.data_dir=~/tensorflow_datasets

Cost: 390,625 updates of 512 images. All but the labels is cifar_edm's; EDM's own conditional models leave none out, and
cannot be guided by themselves.
"""

from configs import cifar_edm


def get_config(variant: str = ""):
    config = cifar_edm.get_config(variant)
    config.net.class_conditional, config.data.label_dropout = True, 0.1
    return config
