"""Stable Diffusion 1.5 as a latent consistency model: 1 to 8 evaluations an image, guidance an input.

    python -m cmjax.main --mode=import --source=stable-diffusion-v1-5 --workdir=runs/sd15
    python -m cmjax.main --mode=encode --config.data.name=folder --config.data.data_dir=photos \\
      --config.data.image_size=512 --pipeline=runs/sd15 --out=latents
    python -m cmjax.main --config=configs/sd15_lcm.py --config.data.data_dir=latents
    python -m cmjax.main --mode=sample --workdir=runs/sd15_lcm --prompt="a cat" --num=4 --steps=4 --guidance=8

The settings of diffusers' script train_lcm_distill_sd_wds: 50 DDIM steps, scales of guidance from 6 to 16 (the script's
w + 1), Huber's loss with c = 0.001, a target whose average has the rate 0.95, gradients clipped to norm 1; AdamW's rate
of 1e-6 and Huber's loss are those of its instructions, its own defaults are 1e-4 and the squared error. 10,000 updates
of 96 images are this recipe's choice: the paper trains for 100,000 updates.   [Luo et al. 2023]

Cost: an update evaluates the network of 860 million parameters four times, and its gradient once; --mode=plan says what
fits on a slice of TPUs. Nobody has run it here to the end: no released weights were at hand. Stable Diffusion 2 needs
other fields of config.net, which the run names. `:tiny` is of a small pipeline, for tests.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.distilled_prompts("runs/sd15", guidance=(6.0, 16.0))
    config.steps, config.batch_size = 10_000, 96
    config.net = common.network("conditional_unet", guidance_width=256, dtype="bfloat16", remat=True)
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.999)", learning_rate=1e-6, averages=("ema(rate=0.95)",), clip_norm=1.0, weight_decay=0.01
    )
    config.samples.every = 1000
    return common.tiny_prompts(config, variant, **TINY, guidance_width=20)


TINY = {
    "widths": (8, 16),
    "blocks": (1, 1),
    "transformers": (1, 1),
    "attends": (True, False),
    "attends_up": (True, False),
    "heads": (2, 2),
    "context_width": 40,
    "groups": 4,
}
