"""MeanFlow on ImageNet-256's latents: images in one evaluation, without a teacher.   [Geng et al. 2025, MeanFlow]

    python -m cmjax.main --config=configs/imagenet256_meanflow.py --config.data.data_dir=latents

Its latents are those of imagenet256_sit, encoded by sd-vae-ft-mse. Variants `:B4`, `:B2`, `:L2`, `:XL2`, the default,
and `:tiny`. Cost: 1,200,000 updates of 256 images (240 epochs; `:B4` 400,000), for a pod. Published, of
sd-vae-ft-mse: FID of XL/2 3.43 in one evaluation, 2.93 in two. Guidance is in the target, and an evaluation has it at
no cost.
"""

from configs import common

GUIDANCE = {"B4": (3.0, 0.0, 1.0), "B2": (1.0, 0.5, 1.0), "L2": (0.2, 0.92, 0.8), "XL2": (0.2, 0.92, 0.75)}
"""ω, κ and the last time of guidance; its scale is ω/(1 − κ)."""


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 400_000 if variant == "B4" else 1_200_000
    config.batch_size = 256
    config.data.name, config.data.label_dropout = "latents", 0.1
    config.model = common.linear_model("linear_flow")
    guidance, blend, last = GUIDANCE.get(variant, GUIDANCE["XL2"])
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=-0.4, std=1.0)",
            "times_s": "logit_normal(mean=-0.4, std=1.0)",
            "pairs": "sorted(apart=0.25, exact=True)",
            "drops_first": True,
            "distance": "adaptive(p=1.0, c=0.01)",
            "guidance": guidance,
            "blend": blend,
            "guidance_interval": (0.0, last),
        }
    )
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.95)", learning_rate=1e-4, averages=("ema(rate=0.9999, corrected=False)",)
    )
    config.checkpoint.save_every, config.metrics.num = 10_000, 0
    config.samples = common.flow_map_samples(every=50_000, times=(1.0, 0.5))
    return common.on_latents(config, variant, two_times=True)
