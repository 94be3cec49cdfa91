"""ECT on CIFAR-10 in minutes on one GPU: the teacher of cifar_quick_edm, tuned into a consistency model.

    python -m cmjax.main --config=configs/cifar_quick_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_quick_ect.py --config.data.data_dir=~/tensorflow_datasets

As in cifar_small_ect, three stages with q = 3.   [Geng et al. 2024]
"""

from configs import cifar_quick_edm, cifar_small_ect, common


def get_config(variant: str = ""):
    config = cifar_quick_edm.get_config()
    config.steps = 600
    config.init_from = "runs/cifar_quick_edm-tiny" if variant == "tiny" else "runs/cifar_quick_edm"
    config.data.label_dropout = 0.0
    config.objective = cifar_small_ect.get_config().objective
    config.optimizer.learning_rate = 3e-3
    config.optimizer.averages = ("ema(rate=0.99)",)
    config.samples = common.consistency_samples(every=300, times=(80.0, 0.8))
    return common.variant(config, variant)
