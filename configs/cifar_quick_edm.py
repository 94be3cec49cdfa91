"""An EDM diffusion model of CIFAR-10 in minutes on one GPU of the H100's class: the teacher of cifar_quick_ect.

    python -m cmjax.main --config=configs/cifar_quick_edm.py --config.data.data_dir=~/tensorflow_datasets

cifar_small_edm with DDPM++, 55.7 million parameters in bfloat16. docs/results.md has what this recipe and its student
reach, and their images. For a few steps on a laptop: --config=configs/cifar_quick_edm.py:tiny.
"""

from configs import cifar_small_edm, common


def get_config(variant: str = ""):
    config = cifar_small_edm.get_config()
    config.steps, config.batch_size = 1800, 256
    config.net = common.ddpmpp(class_conditional=True, dtype="bfloat16")
    config.objective.times = "lognormal(mean=-1.0, std=1.4)"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.schedule = "cosine(warmup_steps=100)"
    config.checkpoint.save_every = config.samples.every = 600
    return common.variant(config, variant)
