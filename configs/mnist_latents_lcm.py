"""A latent consistency model: the guided teacher's DDIM steps, 20 of its 1000 at once, distilled.   [Luo et al. 2023]

python -m cmjax.main --config=configs/mnist_latents_ddpm.py --config.data.data_dir=latents
python -m cmjax.main --config=configs/mnist_latents_lcm.py --config.data.data_dir=latents
"""

from configs import common, mnist_latents_ddpm


def get_config():
    config = mnist_latents_ddpm.get_config()
    config.steps = 6000
    config.init_from = "runs/mnist_latents_ddpm"
    config.data.label_dropout = 0.0
    config.model = common.ddpm_model('lcm(prediction="epsilon")', t_min=0.0)
    config.net.guided = True
    config.objective = common.ConfigDict(
        {
            "name": "lcm",
            "teacher": "runs/mnist_latents_ddpm",
            "ode_step": "ddim",
            "pairs": "ddim_grid(steps=1000, skip=20)",
            "guidance": (1.0, 4.0),
            "distance": "huber(c=0.001)",
            "weight": "uniform",
            "target": "ema(mu=0.95)",
        }
    )
    config.optimizer.learning_rate = 3e-4
    config.samples = common.consistency_samples(every=0, times=(0.999, 0.759, 0.499, 0.259))
    config.samples.guidance = 2.0
    config.samples.full_noise = config.samples.unit_start = True  # as the paper and its released samplers do
    return config
