"""ECT from what CMT has learned, with its last gap from the start.   [Hu et al. 2025]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_cmt.py
python -m cmjax.main --config=configs/digits_cmt_ect.py
"""

from configs import digits_ect


def get_config():
    config = digits_ect.get_config()
    config.init_from = "runs/digits_cmt"
    config.objective.stages = "equal(count=1)"
    config.objective.gap = "shrinking(q=27)"
    return config
