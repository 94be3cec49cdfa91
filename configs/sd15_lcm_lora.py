"""LCM-LoRA of Stable Diffusion 1.5: an adapter that gives it, and models tuned from it, 2 to 8 evaluations an image.

    python -m cmjax.main --mode=import --source=stable-diffusion-v1-5 --workdir=runs/sd15
    python -m cmjax.main --config=configs/sd15_lcm_lora.py --config.data.data_dir=latents
    python -m cmjax.main --mode=sample --workdir=runs/sd15_lcm_lora --prompt="a cat" --num=4 --steps=4
    python -m cmjax.main --mode=export --workdir=runs/sd15_lcm_lora --format=lora --out=lcm-lora.safetensors

The data are encoded as for sd15_lcm. The settings of diffusers' script
train_lcm_distill_lora_sd_wds: rank and α 64 in all layers, scales of guidance from 4 to 16 (the script's w + 1) that
the teacher alone takes, Huber's loss, the student itself as its target, AdamW at 1e-4. The numbers of updates and of
images in one are this recipe's choice.   [Luo et al. 2023, LCM-LoRA]

The weights of the U-Net stay as they are and are kept once, for the teacher and the student. Checkpoints and averages
hold the adapter alone. Nobody has run it here to the end: no released weights were at hand.
"""

from configs import common, sd15_lcm


def get_config(variant: str = ""):
    config = common.distilled_prompts("runs/sd15", guidance=(4.0, 16.0), lora=True)
    config.steps, config.batch_size = 1000, 96
    config.net = common.network("conditional_unet", dtype="bfloat16", remat=True)
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.999)", learning_rate=1e-4, averages=("ema(rate=0.95)",), clip_norm=1.0, weight_decay=0.01
    )
    config.samples.every = 200
    return common.tiny_prompts(config, variant, **sd15_lcm.TINY)
