"""A diffusion model of the digits on the TrigFlow path: the teacher of digits_scm_cd, the start of digits_scm_ct.

python -m cmjax.main --config=configs/digits_trig.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.model = common.trig_model(t_min=0.004)
    config.net.max_frequency = 4.0
    config.objective = common.ConfigDict(
        {
            "name": "denoising",
            "times": "lognormal(mean=-0.4, std=1.4)",
            "weight": "inverse_c_out",
        }
    )
    config.samples = common.teacher_samples(every=1000)
    return config
