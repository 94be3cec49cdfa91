"""Multistep CT with two segments: two DDIM steps make a sample.   [Heek et al. 2024]

python -m cmjax.main --config=configs/digits_multistep_ct.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.objective.name, config.objective.segments = "multistep_ct", 2
    config.samples = common.few_steps(every=1000, times=(80.0, 2.5153))
    return config
