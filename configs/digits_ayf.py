"""AYF-EMD: MeanFlow's tangent along a teacher's flow, with its norm bounded.   [Sabour et al. 2025]

python -m cmjax.main --config=configs/digits_flow.py
python -m cmjax.main --config=configs/digits_ayf.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.init_from = "teacher"
    config.objective = common.ConfigDict(
        {
            "name": "ayf",
            "teacher": "runs/digits_flow",
            "times": "logit_normal(mean=-0.8, std=1.0)",
            "times_s": "uniform(rho=1.0)",
            "pairs": "long(apart=1.0)",
            "warmup": "ramp(length=1000)",
            "normalize": "unit_norm(c=0.1)",
            "guidance": (),
        }
    )
    return config
