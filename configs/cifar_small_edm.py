"""An EDM diffusion model of CIFAR-10 for a laptop: the teacher of the other cifar_small recipes.

    python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets

The U-Net of 2.8 million parameters works on patches of 4×4 pixels, so that an image costs 0.15 gigaflops. It knows the
classes; a tenth of the images are without, so that samples can be guided. docs/results.md has what this recipe and its
students reach in half an hour to an hour and a half of two CPU cores, and their images.
"""

from configs import common


def get_config():
    config = common.base()
    config.steps = 4000
    config.batch_size = 64
    config.data.name = "cifar10"
    config.data.horizontal_flip, config.data.label_dropout = True, 0.1
    config.net = common.ddpmpp(
        patch=4, channels=96, channel_mult=(1, 1), blocks=1, attention_resolutions=(8,), class_conditional=True
    )
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {"name": "denoising", "times": "lognormal(mean=-0.9, std=1.4)", "weight": "karras"}
    )
    config.optimizer = common.optimizer(
        "muon", learning_rate=1.5e-2, schedule="cosine(warmup_steps=50)", averages=("ema(rate=0.995)",)
    )
    config.checkpoint.save_every = 500
    config.samples = common.teacher_samples(every=1000)
    config.samples.guidance = 1.5
    return config
