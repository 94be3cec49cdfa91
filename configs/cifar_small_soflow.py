"""SoFlow on CIFAR-10 for a laptop: the solution of the flow, learned without a derivative.   [Luo et al. 2025]

    python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_small_soflow.py --config.data.data_dir=~/tensorflow_datasets

It starts from the teacher's network, as cifar_small_meanflow does.
"""

from configs import cifar_small_meanflow, digits_soflow


def get_config():
    config = cifar_small_meanflow.get_config()
    config.objective = digits_soflow.get_config().objective
    return config
