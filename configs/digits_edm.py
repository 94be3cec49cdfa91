"""An EDM diffusion model of scikit-learn's digits: the teacher that digits_cd distils.

    python -m cmjax.main --config=configs/digits_edm.py

ln σ ~ N(−0.4, 1.4²), wider than the paper's N(−1.2, 1.2²): the strokes of an 8×8 digit are decided at larger noise.
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.steps = 6000
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {"name": "denoising", "times": "lognormal(mean=-0.4, std=1.4)", "weight": "karras"}
    )
    config.samples = common.teacher_samples(every=1000)
    return config
