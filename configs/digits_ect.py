"""ECT: the teacher of digits_edm, tuned into a consistency model.   [Geng et al. 2024]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_ect.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.init_from = "runs/digits_edm"
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=-0.4, std=1.8)",
            "stages": "equal(count=1)",
            "gap": "shrinking(q=16)",
            "distance": "pseudo_huber(c=0.1)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    return config
