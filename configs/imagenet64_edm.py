"""EDM's diffusion model of ImageNet at 64×64, the teacher of imagenet64_cd, as OpenAI trains it.   [Karras et al. 2022]

    python -m cmjax.main --config=configs/imagenet64_edm.py --config.data.data_dir=FOLDER

FOLDER has a folder of images for each class. Cost: 600,000 updates of 4,096 images, for a pod. OpenAI's own weights:

    python -m cmjax.main --mode=import --source=edm_imagenet64_ema.pt --workdir=runs/imagenet64_edm

For a few steps on a laptop: --config=configs/imagenet64_edm.py:tiny.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 600_000
    config.batch_size = 4096
    config.data.name = "folder"
    config.data.image_size = 64
    config.data.horizontal_flip = True
    config.net = common.adm(class_conditional=True, dropout=0.1, dtype="bfloat16")
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {"name": "denoising", "times": "lognormal(mean=-1.2, std=1.2)", "weight": "karras"}
    )
    config.optimizer = common.optimizer(
        "radam",
        learning_rate=1e-4,
        averages=(
            "ema(rate=0.99994, corrected=False)",
            "ema(rate=0.9999, corrected=False)",
            "ema(rate=0.999, corrected=False)",
        ),
    )
    config.checkpoint.save_every = 5000
    config.samples = common.teacher_samples(every=5000)
    config.samples.clip = True  # as the released code samples
    return common.variant(config, variant)
