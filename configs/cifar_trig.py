"""A diffusion model of CIFAR-10 on the TrigFlow path: cifar_scm_cd's teacher, cifar_scm_ct's start. [Lu & Song 2025]

    python -m cmjax.main --config=configs/cifar_trig.py --config.data.data_dir=~/tensorflow_datasets

Cost: 390,625 updates of 512 images. DDPM++ with sCM's two changes: double normalisation, and the network's time is t
itself under slow positional waves. Noise levels, rates and augmentation are cifar_edm's, which the paper's teacher may
not share to the last number.
"""

from configs import cifar_edm, common


def get_config(variant: str = ""):
    config = cifar_edm.get_config()
    config.model = common.trig_model(t_min=0.004)  # noise level 0.002, where the sampler stops
    config.net = common.ddpmpp(dropout=0.13, augment_dim=9, modulation="double_norm")
    config.objective.weight = "inverse_c_out"
    return common.variant(config, variant)
