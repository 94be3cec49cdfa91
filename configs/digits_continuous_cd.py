"""The continuous-time consistency distillation of the first paper.   [Song et al. 2023, app. B]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_continuous_cd.py
"""

from configs import common, digits_continuous_ct


def get_config():
    config = digits_continuous_ct.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "continuous_cd",
            "teacher": "runs/digits_edm",
            "times": "uniform(rho=7.0)",
            "weight": "uniform",
            "distance": "l2",
            "stop_gradient": True,
        }
    )
    return config
