"""CTM without its GAN: a flow map by a teacher's steps, on the path ve.   [Kim et al. 2024]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_ctm.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.steps = 4000
    config.init_from = "teacher"
    config.model.preconditioning, config.net.two_times = "ctm", True
    config.objective = common.ConfigDict(
        {
            "name": "ctm",
            "teacher": "runs/digits_edm",
            "ode_step": "heun",
            "num_scales": 18,
            "times": "lognormal(mean=-0.4, std=1.4)",
            "fraction": 0.25,
            "distance": "l2",
            "weight": "karras",
            "target": "ema(mu=0.99)",
        }
    )
    config.samples = common.flow_map_samples(every=1000, times=(80.0, 0.8))
    return config
