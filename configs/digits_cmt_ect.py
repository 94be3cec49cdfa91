"""ECT from what CMT has learned, of one gap.   [Hu et al. 2025]

python -m cmjax.main --config=configs/digits_edm.py
python -m cmjax.main --config=configs/digits_cmt.py
python -m cmjax.main --config=configs/digits_cmt_ect.py

The paper's gap is that of the last stage. Here it is wider, at a low rate: nearer points and a rate of 0.001 undo what
was learned, and even so one step is worse than before (docs/methods.md).
"""

from configs import digits_ect


def get_config():
    config = digits_ect.get_config()
    config.steps = 3000
    config.init_from = "runs/digits_cmt"
    config.objective.stages, config.objective.gap = "equal(count=1)", "shrinking(q=9)"
    config.objective.distance = "pseudo_huber(c=1.0)"
    config.optimizer.learning_rate = 1e-4
    return config
