"""MeanFlow tuned from SiT, whose last blocks see the second time: a decoupled flow map.   [Lee et al. 2025]

    python -m cmjax.main --config=configs/imagenet256_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/imagenet256_dmf.py --config.data.data_dir=latents

The first command may be an import of SiT's weights in its place (docs/howto/evaluation.md). It has no new parameter:
20 of 28 blocks see t, the rest s. Variants `:B2`, `:L2`, `:XL2`, the default, and `:tiny`. Cost: 400,000 updates of
256 images. Guidance, the times of half of the batch, network and optimizer are the authors'. Theirs adds two losses,
each of a whole batch and with a learned weight; here half of the batch has s = t, of the larger time's distribution,
and the adaptive distance stands for that weight. So their published FID is not this recipe's.
"""

from configs import common, imagenet256_meanflow


def get_config(variant: str = ""):
    config = imagenet256_meanflow.get_config(variant if variant == "tiny" else "XL2")
    config.steps = 400_000
    config.init_from = common.run_of("imagenet256_sit", variant)
    config.model = common.linear_model("linear_ends")
    config.objective.update(
        {
            "times": "logit_normal(mean=0.4, std=1.0)",
            "times_s": "logit_normal(mean=-1.2, std=1.0)",
            "pairs": "sorted(apart=0.5)",
            "drops_first": False,
            "distance": "adaptive(p=1.0, c=40.96)",  # .01 a value
            "guidance": 1.0,
            "blend": 0.6,
            "guidance_interval": (0.0, 0.7),
        }
    )
    config.optimizer.clip_norm = 1.0
    blocks = {"tiny": 1, "B2": 8, "L2": 16}.get(variant, 20)
    return common.on_latents(config, variant, sizes=("B2", "L2", "XL2"), two_times=True, second_time_from=blocks)
