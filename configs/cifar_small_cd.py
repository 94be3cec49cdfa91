"""Consistency distillation on CIFAR-10 for a laptop: of the guided teacher of cifar_small_edm.   [Luo et al. 2023]

python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets
python -m cmjax.main --config=configs/cifar_small_cd.py --config.data.data_dir=~/tensorflow_datasets
"""

from configs import cifar_small_ect, common


def get_config():
    config = cifar_small_ect.get_config()
    config.steps = 500
    config.net.guided = True
    config.model.preconditioning = "consistency"
    config.objective = common.ConfigDict(
        {
            "name": "guided_cd",
            "teacher": "runs/cifar_small_edm",
            "guidance": (1.0, 3.0),
            "ode_step": "heun",
            "curriculum": "constant(num_scales=18)",
            "intervals": "uniform",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.samples.guidance = 2.0
    return config
