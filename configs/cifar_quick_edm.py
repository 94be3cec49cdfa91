"""An EDM diffusion model of CIFAR-10 in minutes on one GPU of the H100's class: the teacher of cifar_quick_ect.

    python -m cmjax.main --config=configs/cifar_quick_edm.py --config.data.data_dir=~/tensorflow_datasets

DDPM++ with 55.7 million parameters in bfloat16, learned by Muon. It knows the classes; a tenth of the images are
without, so that samples can be guided. For a few steps on a laptop: --config=configs/cifar_quick_edm.py:tiny.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 1800
    config.batch_size = 256
    config.data.name = "cifar10"
    config.data.horizontal_flip, config.data.label_dropout = True, 0.1
    config.net = common.ddpmpp(class_conditional=True, dtype="bfloat16")
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {"name": "denoising", "times": "lognormal(mean=-1.0, std=1.4)", "weight": "karras"}
    )
    config.optimizer = common.optimizer(
        "muon", learning_rate=8e-3, schedule="cosine(warmup_steps=100)", averages=("ema(rate=0.995)",)
    )
    config.checkpoint.save_every = 600
    config.samples = common.teacher_samples(every=600)
    config.samples.guidance = 1.5
    return common.variant(config, variant)
