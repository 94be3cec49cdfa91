"""Consistency distillation on CIFAR-10 for a laptop: of the teacher of cifar_small_edm, with Heun steps.

python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets
python -m cmjax.main --config=configs/cifar_small_cd.py --config.data.data_dir=~/tensorflow_datasets
"""

from configs import cifar_small_ect, common


def get_config():
    config = cifar_small_ect.get_config()
    config.steps = 1200
    config.model.preconditioning = "consistency"
    config.objective = common.ConfigDict(
        {
            "name": "cd",
            "teacher": "runs/cifar_small_edm",
            "ode_step": "heun",
            "curriculum": "constant(num_scales=18)",
            "intervals": "uniform",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    return config
