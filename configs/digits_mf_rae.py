"""MF-RAE's training from data: MeanFlow by differences at times shifted towards noise.   [MF-RAE]

python -m cmjax.main --config=configs/digits_mf_rae.py

The paper's shift is the root of 16·16·768/4096, 6.93, of its latents' many values; here it is 2. Of a teacher, such as
the published runs have, config.objective.teacher is the folder.
"""

from configs import digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective.update(
        {
            "times": "uniform(shift=2.0)",
            "times_s": "uniform(shift=2.0)",
            "pairs": "sorted(apart=0.25)",
            "distance": "adaptive(p=1.0, c=0.001)",
            "derivative": "central_difference(step=0.005)",
        }
    )
    return config
