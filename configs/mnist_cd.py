"""Consistency distillation of the teacher of mnist_edm, with Heun steps: its edits are in docs/howto/editing.md.

python -m cmjax.main --config=configs/mnist_edm.py --config.data.data_dir=~/tensorflow_datasets
python -m cmjax.main --config=configs/mnist_cd.py --config.data.data_dir=~/tensorflow_datasets
"""

from configs import common, mnist_edm


def get_config():
    config = mnist_edm.get_config()
    config.steps = 700
    config.init_from = "teacher"
    config.model.preconditioning = "consistency"
    config.objective = common.ConfigDict(
        {
            "name": "cd",
            "teacher": "runs/mnist_edm",
            "ode_step": "heun",
            "curriculum": "constant(num_scales=18)",
            "intervals": "uniform",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.samples = common.consistency_samples(every=500, times=(80.0, 0.8))
    return config
