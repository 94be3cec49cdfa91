"""iMF on CIFAR-10 for a laptop: MeanFlow whose derivative follows the network's velocity.   [Geng et al. 2025, iMF]

    python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_small_imf.py --config.data.data_dir=~/tensorflow_datasets

It starts from the teacher's network, as cifar_small_meanflow does.
"""

from configs import cifar_small_meanflow


def get_config():
    config = cifar_small_meanflow.get_config()
    config.objective.name, config.objective.distance = "imf", "adaptive(p=0.75, c=0.001)"
    del config.objective.blend
    return config
