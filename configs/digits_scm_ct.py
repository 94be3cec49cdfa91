"""sCT: continuous-time consistency training on the TrigFlow path.   [Lu & Song 2025]

python -m cmjax.main --config=configs/digits_trig.py
python -m cmjax.main --config=configs/digits_scm_ct.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.init_from = "runs/digits_trig"
    config.model = common.trig_model()
    config.net.max_frequency, config.net.weight_head = 4.0, 64
    config.objective = common.ConfigDict(
        {
            "name": "scm_ct",
            "times": "lognormal(mean=-0.4, std=1.6)",
            "warmup": "ramp(length=1000)",
            "normalize": "unit_norm",
            "learned_weight": True,
        }
    )
    config.samples.times = (1.56454, 1.1)
    return config
