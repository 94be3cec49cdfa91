"""A diffusion model of images of two digits from prompts, as "a three left of a seven": Stable Diffusion, small.

python examples/captioned_digits.py --data=~/tensorflow_datasets --out=captions
python -m cmjax.main --mode=encode --config.data.name=folder --config.data.data_dir=captions/pictures \\
  --config.data.image_size=32 --config.data.channels=1 --pipeline=captions/pipeline --out=captions/latents
python -m cmjax.main --config=configs/captions_ddpm.py --config.data.data_dir=captions/latents
"""

from configs import common

UNET = {
    "widths": (32, 64),
    "blocks": (1, 1),
    "transformers": (1, 1),
    "attends": (True, True),
    "attends_up": (True, True),
    "heads": (4, 4),
    "context_width": 64,
    "groups": 16,
}
"""What differs from Stable Diffusion's U-Net."""


def get_config():
    config = common.base()
    config.steps = 3000
    config.batch_size = 64
    config.init_from = "captions/pipeline"  # an untrained U-Net, and all that surrounds it
    config.data.name, config.data.label_dropout = "latents", 0.1
    config.model = common.ddpm_model("epsilon")
    config.net = common.network("conditional_unet", **UNET)
    config.objective = common.ConfigDict({"name": "denoising", "times": "uniform(rho=1.0)", "weight": "inverse_c_out"})
    config.optimizer = common.optimizer(
        "muon", learning_rate=1e-2, schedule="cosine(warmup_steps=50)", averages=("ema(rate=0.995)",)
    )
    config.samples = common.prompted(common.teacher_samples(every=0), prompts=PROMPTS, guidance=3.0)
    config.samples.solver, config.samples.solver_steps = "ddim", 25
    config.metrics.num = 0
    return config


PROMPTS = (
    "a three left of a seven", "a seven left of a three", "a zero above a five", "a nine below a one",
    "a two right of a six", "a eight above a eight", "a four left of a nine", "a six below a two",
)  # fmt: skip
