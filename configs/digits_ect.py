"""ECT: the teacher of digits_edm, tuned into a consistency model.   [Geng et al. 2024]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_ect.py

Three stages with q = 3 in place of the paper's eight with q = 2: in so few updates the last of eight are never learned,
and samples are smooth averages; a fixed gap from the start leaves the far end of the trajectory untaught.
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.init_from = "runs/digits_edm"
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=0.0, std=2.0)",
            "stages": "equal(count=3)",
            "gap": "shrinking(q=3)",
            "coupling": "independent",
            "distance": "pseudo_huber(c=0.1)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    return config
