"""Progressive distillation on CIFAR-10: 1,024 steps of cifar_edm's teacher, halved to one.   [Salimans & Ho 2022]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_pd.py --config.data.data_dir=~/tensorflow_datasets

Cost: 600,000 updates of 512 images, eight stages of 50,000 and the last two, of two steps and of one, of 100,000.
Lengths, clipping and the learning rate, which falls to zero within each stage while Adam starts anew, are those of
OpenAI's CIFAR-10 code. The number of steps to begin with is chosen here.
"""

from configs import cifar_edm, common


def get_config(variant: str = ""):
    config = cifar_edm.get_config()
    config.steps = 600_000
    config.init_from = "runs/cifar_edm-tiny" if variant == "tiny" else "runs/cifar_edm"
    config.data.augment, config.data.horizontal_flip = "", True
    config.net.dropout = 0.0
    config.objective = common.ConfigDict(
        {
            "name": "pd",
            "curriculum": f"halving(start={2 if variant == 'tiny' else 512}, end=1, doubled=2)",
            "distance": "l2",
            "weight": "truncated_snr",
        }
    )
    config.optimizer = common.optimizer(
        "adam", learning_rate=5e-5, schedule="linear", clip_norm=1.0, averages=("ema(rate=0.9999, corrected=False)",)
    )
    config.optimizer.restart_each_stage = True
    config.samples = common.few_steps(every=5000, times=(80.0,))
    return common.variant(config, variant)
