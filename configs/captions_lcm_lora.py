"""LCM-LoRA of images from prompts, small: an adapter of captions_ddpm that makes it a model of few evaluations.

python -m cmjax.main --config=configs/captions_ddpm.py --config.data.data_dir=captions/latents
python -m cmjax.main --config=configs/captions_lcm_lora.py --config.data.data_dir=captions/latents
python -m cmjax.main --mode=sample --workdir=runs/captions_lcm_lora --prompt="a three left of a seven" --num=4 --steps=2
"""

from configs import captions_ddpm, common


def get_config():
    config = common.distilled_prompts("runs/captions_ddpm", guidance=(3.0, 3.0), lora=True)
    config.steps, config.batch_size = 600, 64
    config.data.image_size = 0
    config.data.channels = 0
    config.net = common.network("conditional_unet", **captions_ddpm.UNET)
    config.lora.rank, config.lora.alpha = 16, 16.0
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.99)", learning_rate=2e-3, schedule="cosine", averages=("ema(rate=0.99)",), clip_norm=1.0
    )
    config.samples = common.prompted(config.samples, prompts=captions_ddpm.PROMPTS, guidance=1.0)
    config.samples.num = 32
    return config
