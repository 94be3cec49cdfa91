"""A latent consistency model of images from prompts, small: 1, 2 or 4 evaluations, guidance an input.

python -m cmjax.main --config=configs/captions_ddpm.py --config.data.data_dir=captions/latents
python -m cmjax.main --config=configs/captions_lcm.py --config.data.data_dir=captions/latents
python -m cmjax.main --mode=sample --workdir=runs/captions_lcm --prompt="a three left of a seven" --num=4 --steps=2 \\
  --guidance=3

captions_ddpm is the teacher, whose docstring has the commands for the data.
"""

from configs import captions_ddpm, common


def get_config():
    config = common.distilled_prompts("runs/captions_ddpm", guidance=(1.0, 5.0))
    config.steps, config.batch_size = 1000, 64
    config.data.image_size = 0
    config.data.channels = 0
    config.net = common.network("conditional_unet", **captions_ddpm.UNET, guidance_width=64)
    config.optimizer = common.optimizer(
        "muon", learning_rate=4e-3, schedule="cosine(warmup_steps=50)", averages=("ema(rate=0.99)",)
    )
    config.objective.target = "stop_gradient"  # what is learned at one step of DDIM must pass through fifty
    config.samples = common.prompted(config.samples, prompts=captions_ddpm.PROMPTS, guidance=3.0)
    config.samples.num = 32
    return config
