"""FACM: a consistency model that is anchored by flow matching, from a teacher.   [Peng et al. 2025]

python -m cmjax.main --config=configs/digits_flow.py
python -m cmjax.main --config=configs/digits_facm.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.init_from = "teacher"
    config.objective = common.ConfigDict(
        {
            "name": "facm",
            "teacher": "runs/digits_flow",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "guidance": 1.0,
        }
    )
    config.samples = common.consistency_samples(every=config.samples.every, times=(1.0, 0.5))
    return config
