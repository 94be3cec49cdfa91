"""Distillation of the guided teacher of digits_classes; the student is given the scale of guidance.   [Luo et al. 2023]

python -m cmjax.main --config=configs/digits_classes.py
python -m cmjax.main --config=configs/digits_guided_cd.py
"""

from configs import digits_cd


def get_config():
    config = digits_cd.get_config()
    config.objective.teacher = "runs/digits_classes"
    config.net.class_conditional, config.net.guided = True, True
    config.objective.name, config.objective.guidance = "guided_cd", (1.0, 3.0)
    config.samples.guidance = 1.5
    return config
