"""FACM from SiT on ImageNet-256's latents: a consistency model, anchored by flow matching.   [Peng et al. 2025]

    python -m cmjax.main --config=configs/imagenet256_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/imagenet256_facm.py --config.data.data_dir=latents

The first command may be an import of SiT's weights in its place (docs/howto/evaluation.md). Variants `:B2`, `:L2`,
`:XL2`, the default, and `:tiny`. Cost: 500,000 updates of 1,024 images (400 epochs), for a pod. Published: FID 1.70 in
one evaluation after 400 epochs, 1.32 in two after 100, from LightningDiT on the latents of its own autoencoder, which
is not this teacher. So these figures are not this recipe's.

Guidance, batch, optimizer and average are the authors'. Times are their option "log"; their default,
t = arctan(σ)·2/π with ln σ ~ N(−0.8, 1.6²), is not among the choices. Their step of a loss that is not finite counts
as zero; here it is skipped, `--config.optimizer.skip_nonfinite=1`, or ends the run.
"""

from configs import common, imagenet256_sit


def get_config(variant: str = ""):
    config = imagenet256_sit.get_config(variant if variant == "tiny" else "XL2")
    config.steps, config.batch_size = 500_000, 1024
    config.data.label_dropout = 0.0
    config.init_from = "teacher"
    config.model = common.linear_model("linear_expanded")
    config.objective = common.ConfigDict(
        {
            "name": "facm",
            "teacher": common.run_of("imagenet256_sit", variant),
            "times": "logit_normal(mean=-0.8, std=1.6)",
            "guidance": 1.75,
            "guidance_interval": (0.0, 0.875),
        }
    )
    config.optimizer = common.optimizer("adam", learning_rate=1e-4, clip_norm=1.0, averages=("power(std=0.2)",))
    config.samples = common.consistency_samples(every=50_000, times=(1.0, 0.5))
    return common.on_latents(config, variant, sizes=("B2", "L2", "XL2"))
