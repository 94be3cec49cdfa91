"""Evaluates a run as it trains: a row in its `evaluation.jsonl` every so many steps."""

from cmjax.config.averages import average_texts
from cmjax.config.fields import ConfigError
from cmjax.data.base import kind_of
from cmjax.data.batches import UINT8
from cmjax.evaluation.accumulation import DataSets
from cmjax.evaluation.evaluator import make_evaluator
from cmjax.evaluation.results import CONTENT, ROWS
from cmjax.evaluation.sweep import evaluate_once, samples_key
from cmjax.generation.decoding import images_for
from cmjax.generation.run_samples import RunSamples
from cmjax.generation.sampling import SampleSequence
from cmjax.system.files import cache_of
from cmjax.training.logging import Results
from cmjax.training.loop import ResultsOf
from cmjax.training.state import TrainState


def evaluation_callback(run_samples: RunSamples) -> ResultsOf:
    """Makes the callback that evaluates a run's samples by its section `evaluate`, each sampler's of the same noise.

    Raises: ConfigError or DataError where they cannot be evaluated: before the run begins, not at its end.
    """
    run, workdir = run_samples.run, run_samples.workdir
    evaluation = run.evaluation
    if run_samples.decoder is None and kind_of(run_samples.source.shape) == "latents":
        raise ConfigError(
            f"config.evaluate.every={evaluation.every}: metrics are of images, not {run_samples.source.shape}; name "
            "what decodes them by config.data.autoencoder"
        )
    data = DataSets(*images_for(run, run_samples.source, run_samples.decoder))
    average = average_texts(run.config)[0]
    # here and not at the first call: a missing weight or reference ends the run before it trains
    evaluator = make_evaluator(evaluation, data, num=evaluation.num, reference=None, cache_dir=cache_of(workdir))
    labels = {"labels": evaluation.labels} if run_samples.model.class_conditional else {}
    random_seed = run.seed if evaluation.labels == "random" else None

    def callback(state: TrainState, step: int) -> Results:
        flow_map, conditions = run_samples.conditioned(state, evaluation.num, random_seed=random_seed)
        # once for all samplers: a hash of all parameters
        content = samples_key(flow_map, run_samples.decoder)
        metrics: dict[str, float] = {}
        for chosen in run_samples.samplers.values():
            setting = {"step": step, "checkpoint": None, "average": average, **chosen.setting}
            setting |= {"num": evaluation.num, "seed": run.seed, **labels, CONTENT: content}
            shown = UINT8[evaluation.uint8], run_samples.decoder
            sequence = SampleSequence(chosen.sampler, flow_map, run.seed, conditions, *shown)
            row = evaluate_once(workdir / ROWS, setting, evaluator, sequence.images)
            metrics |= {f"evaluation/{chosen.name}/{name}": value for name, value in row["metrics"].items()}
        return Results(metrics=metrics)

    return callback
