"""SCT: ECT with the target's variance reduced by the rest of the batch.   [Wang et al. 2024]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_sct.py
"""

from configs import digits_ect


def get_config():
    config = digits_ect.get_config()
    config.objective.name = "sct"
    return config
