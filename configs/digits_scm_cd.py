"""sCD: continuous-time consistency distillation on the TrigFlow path.   [Lu & Song 2025]

python -m cmjax.main --config=configs/digits_trig.py
python -m cmjax.main --config=configs/digits_scm_cd.py
"""

from configs import common, digits_scm_ct


def get_config():
    config = digits_scm_ct.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "scm_cd",
            "teacher": "runs/digits_trig",
            "guidance": (),
            "times": "lognormal(mean=-0.4, std=1.6)",
            "warmup": "ramp(length=3000)",
            "normalize": "unit_norm",
            "learned_weight": True,
        }
    )
    return config
