"""sCD from SiT on ImageNet-256's latents: continuous-time distillation, guidance an input.   [Lu & Song 2025]

    python -m cmjax.main --config=configs/imagenet256_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/imagenet256_scm_cd.py --config.data.data_dir=latents

The first command may be an import of SiT's weights in its place (docs/howto/evaluation.md). Variants `:B2`, `:L2`,
`:XL2`, the default, and `:tiny`. Cost: 400,000 updates of 2,048 images, for a pod. Nobody has published it: the paper
distils EDM2 on pixels and on latents of 512 pixels. The path is SiT's own, the linear one; the noise levels are the
paper's over the std of the data, which is 1 here and 0.5 there.
"""

from configs import common, imagenet256_sit


def get_config(variant: str = ""):
    config = imagenet256_sit.get_config(variant if variant == "tiny" else "XL2")
    config.steps, config.batch_size = 400_000, 2048
    config.data.label_dropout = 0.0
    config.init_from = "teacher"
    config.model = common.linear_model("linear")
    config.objective = common.ConfigDict(
        {
            "name": "scm_cd",
            "teacher": common.run_of("imagenet256_sit", variant),
            "guidance": (1.0, 2.0),
            "times": "logit_normal(mean=-0.3, std=1.6)",
            "warmup": "ramp(length=10000)",
            "normalize": "unit_norm",
            "learned_weight": True,
        }
    )
    config.optimizer = common.optimizer(
        "radam(b1=0.9, b2=0.99)", learning_rate=1e-4, averages=("half_life(mimg=2.0, ramp_up=0.05)",)
    )
    config.samples = common.consistency_samples(every=50_000, times=(1.0, 0.5))
    config.samples.guidance = 1.5
    return common.on_latents(config, variant, sizes=("B2", "L2", "XL2"), guided=True, weight_head=128)
