"""Consistency distillation of the teacher of digits_edm, with Heun steps.

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_cd.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.steps = 4000
    config.init_from = "teacher"
    config.objective = common.ConfigDict(
        {
            "name": "cd",
            "teacher": "runs/digits_edm",
            "ode_step": "heun",
            "curriculum": "constant(num_scales=18)",
            "intervals": "uniform",
            "distance": "pseudo_huber(c=0.1)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    return config
