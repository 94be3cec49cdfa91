"""The continuous-time consistency training of the first paper.   [Song et al. 2023, app. B]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_continuous_ct.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.init_from = "runs/digits_edm"
    config.optimizer.learning_rate = 1e-4
    config.objective = common.ConfigDict(
        {
            "name": "continuous_ct",
            "times": "uniform(rho=7.0)",
            "weight": "uniform",
            "distance": "l2",
        }
    )
    return config
