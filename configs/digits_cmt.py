"""CMT: every state of the teacher's trajectories is mapped to its end, before ECT is trained.   [Hu et al. 2025]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_cmt.py
"""

from configs import common, digits_ect


def get_config():
    config = digits_ect.get_config()
    config.init_from = "teacher"
    config.objective = common.ConfigDict(
        {
            "name": "cmt",
            "teacher": "runs/digits_edm",
            "trajectory": "dpmpp_3m",
            "grid": "logarithmic(steps=16)",
            "distance": "l2",
        }
    )
    return config
