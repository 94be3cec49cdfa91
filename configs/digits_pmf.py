"""pMF on pixels: iMF whose network gives images and sees t - s alone, without perceptual terms.   [Lu et al. 2026, pMF]

python -m cmjax.main --config=configs/digits_pmf.py

Times and distance are the paper's. LPIPS is config.objective.perceptual, of colour images.
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.model = common.linear_model("clean_gap")
    config.net.two_times = False
    config.objective = common.ConfigDict(
        {
            "name": "pmf",
            "times": "logit_normal(mean=0.8, std=0.8)",
            "times_s": "logit_normal(mean=0.8, std=0.8)",
            "pairs": "sorted(apart=0.5)",
            "distance": "adaptive(p=1.0, c=0.01)",
            "perceptual": "",
            "t_least": 0.05,
            "guidance": 1.0,
        }
    )
    return config
