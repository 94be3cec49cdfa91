"""AYF from SiT on ImageNet-256's latents: a flow map by a bounded tangent, guidance an input.   [Sabour et al. 2025]

    python -m cmjax.main --config=configs/imagenet256_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/imagenet256_ayf.py --config.data.data_dir=latents

The first command may be an import of SiT's weights in its place (docs/howto/evaluation.md). Variants `:B2`, `:L2`,
`:XL2`, the default, and `:tiny`. Cost: 400,000 updates of 2,048 images, as imagenet256_scm_cd, whose batch and
optimizer it has. Nobody has published it: the paper distils EDM2 on pixels of 64 and on latents of 512 pixels (there
FID 1.70 in four evaluations), and guides by a weaker model, `guidance` from 1 to 3, where this guides by labels. Its
warm-up ends at 0.99, here at 1.
"""

from configs import common, imagenet256_scm_cd


def get_config(variant: str = ""):
    config = imagenet256_scm_cd.get_config(variant)
    config.model = common.linear_model("linear_flow")
    config.objective = common.ConfigDict(
        {
            "name": "ayf",
            "teacher": config.objective.teacher,
            "times": "logit_normal(mean=-0.8, std=1.0)",
            "times_s": "uniform(rho=1.0)",
            "pairs": "long(apart=1.0)",
            "warmup": "ramp(length=10000)",
            "normalize": "unit_norm(c=0.1)",
            "guidance": (1.0, 3.0),
        }
    )
    config.samples = common.flow_map_samples(every=50_000, times=(1.0, 0.75, 0.5, 0.25))
    config.samples.guidance = 1.5
    return common.on_latents(config, variant, sizes=("B2", "L2", "XL2"), two_times=True, guided=True)
