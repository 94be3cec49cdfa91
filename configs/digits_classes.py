"""A class-conditional diffusion model of the digits, to be guided: a tenth of the labels is left out.

python -m cmjax.main --config=configs/digits_classes.py
"""

from configs import digits_edm


def get_config():
    config = digits_edm.get_config()
    config.net.class_conditional, config.data.label_dropout = True, 0.1
    return config
