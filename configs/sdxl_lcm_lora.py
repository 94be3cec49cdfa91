"""LCM-LoRA of SDXL: an adapter that gives it, and models tuned from it, 2 to 8 evaluations an image.

    python -m cmjax.main --mode=import --source=stable-diffusion-xl-base-1.0 --workdir=runs/sdxl
    python -m cmjax.main --mode=encode --config.data.name=folder --config.data.data_dir=photos \\
      --config.data.image_size=1024 --pipeline=runs/sdxl --out=latents-xl
    python -m cmjax.main --config=configs/sdxl_lcm_lora.py --config.data.data_dir=latents-xl

The settings of sd15_lcm_lora, as diffusers' script train_lcm_distill_lora_sdxl_wds has them. The U-Net has 2.6 billion
parameters, 10 GiB, which config.mesh.fsdp divides over devices. Nobody has run it here to the end: no released weights
were at hand.   [Luo et al. 2023, LCM-LoRA; Podell et al. 2023, SDXL]
"""

from configs import common


def get_config(variant: str = ""):
    config = common.distilled_prompts("runs/sdxl", guidance=(4.0, 16.0), lora=True)
    config.steps, config.batch_size = 1000, 96
    config.data.image_size = 128
    config.net = common.network("conditional_unet", **common.SDXL, dtype="bfloat16", remat=True)
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.999)", learning_rate=1e-4, averages=("ema(rate=0.95)",), clip_norm=1.0, weight_decay=0.01
    )
    config.samples.every = 200
    tiny = {"widths": (8, 16, 16), "groups": 4, "blocks": (1, 1, 1), "transformers": (1, 1, 2), "heads": (2, 2, 4)}
    return common.tiny_prompts(config, variant, **tiny, context_width=28, pooled_width=10, size_width=4)
