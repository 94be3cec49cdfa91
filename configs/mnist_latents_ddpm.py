"""A diffusion model of MNIST's latents that predicts the noise, as Stable Diffusion does: the teacher of
mnist_latents_lcm.

    python -m cmjax.main --config=configs/mnist_latents_ddpm.py --config.data.data_dir=latents

docs/howto/latents.md says how the latents are made. For a model that predicts v: --config.model.preconditioning=v
"""

from configs import common


def get_config():
    config = common.base()
    config.steps = 8000
    config.batch_size = 128
    config.data.name, config.data.label_dropout = "latents", 0.1
    config.model = common.ddpm_model("epsilon")
    config.net = common.mlp(width=384, depth=4, embedding_width=128, class_conditional=True)
    config.objective = common.ConfigDict({"name": "denoising", "times": "uniform(rho=1.0)", "weight": "inverse_c_out"})
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.99)", learning_rate=1e-3, schedule="cosine", averages=("ema(rate=0.999)",)
    )
    config.samples = common.teacher_samples(every=0)
    config.samples.guidance = 2.0
    return config
