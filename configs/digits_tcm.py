"""TCM's second stage: noise levels from 1 on, from digits_ect, which is its first.   [Lee et al. 2025]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_ect.py
python -m cmjax.main --config=configs/digits_tcm.py
"""

from configs import common, digits_ect


def get_config():
    config = digits_ect.get_config()
    config.init_from = "runs/digits_ect"
    config.objective = common.ConfigDict(
        {
            "name": "tcm",
            "first_stage": "runs/digits_ect",
            "boundary": 1.0,
            "fraction": 0.25,
            "boundary_weight": 0.1,
            "times": "student(df=0.01, scale=0.2, highest=80.0)",
            "stages": "equal(count=1)",
            "gap": "shrinking(q=16, k=0)",
            "distance": "pseudo_huber(c=0.1)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.samples.times = (80.0, 1.0)
    return config
