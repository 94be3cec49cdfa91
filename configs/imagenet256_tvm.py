"""TVM on ImageNet-256's latents: the end of a flow map moves by the velocity of its average.   [Zhou et al. 2025]

    python -m cmjax.main --config=configs/imagenet256_tvm.py --config.data.data_dir=latents

Its latents are those of imagenet256_sit, encoded by sd-vae-ft-ema. Variants `:B2`, `:L2`, `:XL2`, the default, and
`:tiny`. Cost: 400,000 updates of 2,048 images, a length chosen here, for a pod. Published, of sd-vae-ft-ema and EDM's
statistics and Inception: FID 3.29 in one evaluation, 1.99 in four.

Scale, labels, batch, averages and optimizer are those of the released configuration of scale 1.75, and lengths t − s
have its distribution. These differ: s is (1 − (t − s))·s' with s' of theirs, where theirs samples s' until it fits;
flow matching takes half of the batch, where theirs has a whole one of each loss; their network also normalises its
modulations, multiplies its output by the scale and has 18 heads; their latents have mean 0 and std 1 in each channel.
"""

from configs import common, imagenet256_meanflow


def get_config(variant: str = ""):
    config = imagenet256_meanflow.get_config(variant if variant == "tiny" else "XL2")
    config.steps, config.batch_size = 400_000, 2048
    config.objective = common.ConfigDict(
        {
            "name": "tvm",
            "times": "logit_normal(mean=-0.8, std=1.0)",
            "times_s": "logit_normal(mean=-0.4, std=1.0)",
            "pairs": "long(apart=0.5)",
            "distance": "l2",
            "target": "ema(mu=0.99)",
            "guidance": (1.75, 1.75),
        }
    )
    config.samples = common.flow_map_samples(every=50_000, times=(1.0, 0.75, 0.5, 0.25))
    config.samples.guidance = 1.75
    net = {"norm": "rms", "qk_norm": True, "two_times": True, "guided": True}
    return common.on_latents(config, variant, sizes=("B2", "L2", "XL2"), **net)
