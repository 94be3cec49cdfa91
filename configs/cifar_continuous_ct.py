"""The continuous-time consistency training of the first paper, on CIFAR-10.   [Song et al. 2023, app. B]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_continuous_ct.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 512 images. It starts from the teacher's parameters, at the paper's learning rate for that,
5e-6. Batch, length and average are cifar_ct's. cifar_scm_ct is the same limit made stable.
"""

from configs import cifar_ct, common


def get_config(variant: str = ""):
    config = cifar_ct.get_config()
    config.init_from = "runs/cifar_edm-tiny" if variant == "tiny" else "runs/cifar_edm"
    config.net = common.ncsnpp(dropout=0.3, augment_dim=9)  # the teacher's, to start from
    config.objective = common.ConfigDict(
        {"name": "continuous_ct", "times": "uniform(rho=7.0)", "weight": "uniform", "distance": "l2"}
    )
    config.optimizer.rule = common.of_a_sum("radam", size=32 * 32 * 3)
    config.optimizer.learning_rate = 5e-6
    return common.variant(config, variant)
