"""The continuous-time consistency distillation of the first paper, on CIFAR-10.   [Song et al. 2023, app. B]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_continuous_cd.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 512 images; learning rate and dropout as in the paper, the rest as in cifar_continuous_ct.
cifar_scm_cd is the same limit made stable.
"""

from configs import cifar_continuous_ct


def get_config(variant: str = ""):
    config = cifar_continuous_ct.get_config(variant)
    config.objective.name, config.objective.teacher = "continuous_cd", config.init_from
    return config
