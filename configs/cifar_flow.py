"""Flow matching on CIFAR-10: a teacher on the linear path, DDPM++.   [Lipman et al. 2023]

    python -m cmjax.main --config=configs/cifar_flow.py --config.data.data_dir=~/tensorflow_datasets

Cost: 390,625 updates of 512 images. Times are uniform as in the paper; network, rates and augmentation are cifar_edm's
but for DDPM++, so that the path alone tells the two teachers apart.
"""

from configs import cifar_edm, common


def get_config(variant: str = ""):
    config = cifar_edm.get_config()
    config.model = common.linear_model("linear", t_min=0.001)  # the weight 1/t² ends there
    config.net = common.ddpmpp(dropout=0.13, augment_dim=9)
    config.objective.times, config.objective.weight = "uniform", "inverse_c_out"
    return common.variant(config, variant)
