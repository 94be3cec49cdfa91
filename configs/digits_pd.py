"""Progressive distillation: the teacher's 32 steps halved five times, to one.   [Salimans & Ho 2022]

    python -m cmjax.main --config=configs/digits_edm.py
    python -m cmjax.main --config=configs/digits_pd.py

Each stage is a training of its own, and the last two are twice as long: FD 1.54 in one evaluation. With equal stages
under one fall of the rate it was 1.63.
"""

from configs import common, digits_edm


def get_config():
    config = digits_edm.get_config()
    config.init_from = "runs/digits_edm"
    config.objective = common.ConfigDict(
        {
            "name": "pd",
            "curriculum": "halving(start=16, end=1, doubled=2)",
            "distance": "l2",
            "weight": "truncated_snr",
        }
    )
    config.optimizer.restart_each_stage = True
    config.samples = common.few_steps(every=1000, times=(80.0,))
    return config
