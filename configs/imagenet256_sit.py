"""SiT on ImageNet-256's latents: flow matching, the teacher of the other recipes on them.   [Ma et al. 2024, SiT]

    python -m cmjax.main --mode=encode --config.data.name=imagenet2012 --config.data.data_dir=FOLDER \\
        --config.data.image_size=256 --autoencoder=sd-vae-ft-ema --mirrored --out=latents
    python -m cmjax.main --config=configs/imagenet256_sit.py --config.data.data_dir=latents

Or import the published weights, docs/howto/evaluation.md. Variants `:B4`, `:B2`, `:L2`, `:XL2`, the default, and
`:tiny` for a few steps on latents of any size. Cost: 7,000,000 updates of 256 images, for a pod. Published, of
sd-vae-ft-ema and ADM's statistics and Inception: SiT-XL/2 has FID 2.06 (SDE) and 2.15 (ODE) with guidance 1.5. The
times are uniform, the error is that of the velocity.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 7_000_000
    config.batch_size = 256
    config.data.name, config.data.label_dropout = "latents", 0.1
    config.model = common.linear_model("linear", t_min=0.001)  # the weight 1/t² ends there
    config.objective = common.ConfigDict({"name": "denoising", "times": "uniform", "weight": "inverse_c_out"})
    config.optimizer = common.optimizer("adam", learning_rate=1e-4, averages=("ema(rate=0.9999, corrected=False)",))
    config.checkpoint.save_every, config.metrics.num = 10_000, 0
    config.samples = common.teacher_samples(every=50_000)
    config.samples.guidance, config.samples.solver_steps = 1.5, 50
    return common.on_latents(config, variant)
