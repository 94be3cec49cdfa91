"""ECT from SiT on ImageNet-256's latents: a diffusion model tuned into a consistency model.   [Geng et al. 2024]

    python -m cmjax.main --config=configs/imagenet256_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/imagenet256_ect.py --config.data.data_dir=latents

The first command may be an import of SiT's weights in its place (docs/howto/evaluation.md). Variants `:B2`, `:L2`,
`:XL2`, the default, and `:tiny`. Cost: 100,000 updates of 1,024 images, for a pod. Nobody has published it: the
authors' code tunes EDM2-S on ImageNet's pixels, 64×64, with this weight, distance, gap and stages and as many updates
of 128 images. The preconditioning `linear_denoiser` makes SiT's velocity the first denoiser on EDM's path. The std of
the latents is 1, twice that of those pixels, and so are the noise levels. A tenth of the labels is left out, so that
samples can be guided.
"""

from configs import common, imagenet256_sit


def get_config(variant: str = ""):
    config = imagenet256_sit.get_config(variant if variant == "tiny" else "XL2")
    config.steps, config.batch_size = 100_000, 1024
    config.init_from = common.run_of("imagenet256_sit", variant)
    config.model = common.ve_model("linear_denoiser", sigma_data=1.0)
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=-0.1, std=1.6)",
            "stages": "equal(count=4)",
            "gap": "shrinking(q=4)",
            "distance": "pseudo_huber(c=0.06)",
            "weight": "inverse_c_out",
            "target": "stop_gradient",
        }
    )
    config.samples = common.consistency_samples(every=50_000, times=(80.0, 3.0))
    return common.on_latents(config, variant, sizes=("B2", "L2", "XL2"))
