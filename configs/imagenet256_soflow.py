"""SoFlow on ImageNet-256's latents: one evaluation, without a teacher and without a derivative.   [Luo et al. 2025]

    python -m cmjax.main --config=configs/imagenet256_soflow.py --config.data.data_dir=latents

Its latents are those of imagenet256_sit, encoded by sd-vae-ft-mse. Variants `:B4`, `:B2`, `:L2`, `:XL2`, the default,
and `:tiny`. Cost: 1,200,000 updates of 256 images (240 epochs), for a pod. Published, of sd-vae-ft-mse and ADM's
statistics and Inception: FID of XL/2 2.96 in one evaluation, 2.66 in two; of B/2 4.85 and 4.24. Guidance is in the
target. Attention may be fused, and blocks recomputed: `--config.net.attention=cudnn`, `--config.net.remat=True`.

Guidance, distance, gap and optimizer are the authors'. Theirs samples t of flow matching, three quarters of the batch,
from logit_normal(mean=-0.2, std=1.0); here all t have the distribution of the others. Guidance 3 is that of XL/2; what
theirs has for other sizes is not known here.
"""

from configs import common, imagenet256_meanflow


def get_config(variant: str = ""):
    config = imagenet256_meanflow.get_config(variant)
    config.steps = min(config.steps, 1_200_000)
    config.objective = common.ConfigDict(
        {
            "name": "soflow",
            "times": "logit_normal(mean=0.2, std=0.8)",
            "times_s": "logit_normal(mean=-1.0, std=0.8)",
            "pairs": "capped(apart=0.25, exact=True)",
            "gap": "falling(start=0.1, end=0.002)",
            "distance": "adaptive(p=1.0, c=40.96)",  # .01 a value
            "guidance": 3.0,
            "blend": 0.75,
            "fades_after": 0.8,
        }
    )
    config.optimizer.rule = "adam(b1=0.9, b2=0.99)"
    config.samples.sampler = "multistep"
    return config
