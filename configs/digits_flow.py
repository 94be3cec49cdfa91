"""Flow matching: a teacher on the linear path.   [Lipman et al. 2023]

python -m cmjax.main --config=configs/digits_flow.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.model = common.linear_model("linear", t_min=0.001, t_max=0.999)
    config.net.max_frequency = 8.0
    config.objective = common.ConfigDict(
        {
            "name": "denoising",
            "times": "logit_normal(mean=-0.4, std=1.0)",
            "weight": "inverse_c_out",
        }
    )
    config.samples = common.teacher_samples(every=1000)
    return config
