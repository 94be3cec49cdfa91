"""MeanFlow from what CMT has learned of a teacher's flow.   [Hu et al. 2025; MF-RAE]

python -m cmjax.main --config=configs/digits_flow.py
python -m cmjax.main --config=configs/digits_cmt_map.py
python -m cmjax.main --config=configs/digits_cmt_meanflow.py
"""

from configs import digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.init_from = "runs/digits_cmt_map"
    return config
