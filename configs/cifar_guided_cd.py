"""Distillation of cifar_classes' guided teacher; the student is given the scale of guidance.   [Luo et al. 2023]

    python -m cmjax.main --config=configs/cifar_classes.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_guided_cd.py --config.data.data_dir=~/tensorflow_datasets \\
        --config.objective.distance='lpips(vgg="vgg16-397923af.pth", heads="vgg.pth")'

Cost: 800,000 updates of 512 images. The paper distils latent diffusion: its guided teacher and its scales as an input,
in the settings of cifar_cd. Scales from 1 to 3 are chosen here. LPIPS needs the files that cifar_cd names; `:tiny` uses
l2 and no files.
"""

from configs import cifar_cd


def get_config(variant: str = ""):
    config = cifar_cd.get_config(variant)
    config.objective.teacher = "runs/cifar_classes-tiny" if variant == "tiny" else "runs/cifar_classes"
    config.net.class_conditional, config.net.guided = True, True
    config.objective.name, config.objective.guidance = "guided_cd", (1.0, 3.0)
    config.samples.guidance = 1.5
    return config
