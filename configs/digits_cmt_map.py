"""CMT of flow maps: the mean velocity between any two states of the teacher's trajectories.   [Hu et al. 2025; MF-RAE]

python -m cmjax.main --config=configs/digits_flow.py
python -m cmjax.main --config=configs/digits_cmt_map.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.init_from = "teacher"
    config.objective = common.ConfigDict(
        {
            "name": "cmt_map",
            "teacher": "runs/digits_flow",
            "trajectory": "heun",
            "grid": "shifted(steps=16, shift=2.0)",
            "group": 8,
            "distance": "l2",
        }
    )
    return config
