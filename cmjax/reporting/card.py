"""The card of a model in a folder for model hubs: README.md with a header in YAML, metrics, a image and a licence."""

import json
import re
from collections.abc import Mapping
from typing import Any

from cmjax.config.description import describe
from cmjax.config.fields import ConfigError
from cmjax.config.recorded import published
from cmjax.metrics.registry import better
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import Workdir
from cmjax.system.files import read_json_lines

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
TASKS = {"images": "unconditional-image-generation"}
ARROWS = {"larger": " ↑", "smaller": " ↓", "": ""}


def check_licence(licence: str | None) -> None:
    """Raises ConfigError, naming the flag, unless it is an identifier as hubs write it."""
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ConfigError(f"--licence={licence!r}: must be an identifier in small letters, as cc-by-nc-4.0")


def model_card(trained: Trained, *, licence: str | None, image: str, parameters: int, dtype: str) -> str:
    """Writes the card of a run.

    Args: licence: an identifier, None where none is stated. image: the file of samples, beside the card.
    """
    name = trained.folder.absolute().name
    metrics, about = ({}, "") if trained.imported else _metrics(trained)
    sections = [_header(trained, name, licence, metrics), _about(trained, name, parameters, dtype)]
    sections += [f"![Samples, not selected]({image})", _use(trained, name)]
    if metrics:
        sections += ["## Metrics", _table(metrics), *([f"{about}."] if about else [])]
    sections += ["## Licence", _licence(trained, licence)]
    return "\n\n".join(sections) + "\n"


def _metrics(trained: Trained) -> tuple[dict[str, dict[str, Any]], str]:
    """Gives the metrics of a run's parameters, by sampler, and in words what they are of: those at the end of the
    training, else those of `--mode=evaluate`."""
    summary = Workdir(trained.folder).read_summary()
    if summary.get("metrics") and summary.get("steps") == trained.used_step:
        return summary["metrics"], summary.get("metrics_of", "")
    rows, first = read_json_lines(trained.folder / "evaluation.jsonl"), trained.recorded.averages[0]
    rows = [row for row in rows if row.get("step") == trained.used_step and row.get("average") == first]
    if not rows:
        return {}, ""
    metrics = {row["sampler"]: row["metrics"] for row in rows} | {"real images": rows[-1]["real"] or {}}
    features = {rule.get("of", rule.get("network")) for rule in rows[-1]["protocol"]["metrics"].values()}
    about = f"Of {rows[-1]['num']} samples each, guidance {rows[-1]['guidance']:g}, by {', '.join(sorted(features))}"
    return metrics, about


def _header(trained: Trained, name: str, licence: str | None, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["library_name: cmjax", f"license: {licence or 'other'}"]
    kind = "images" if trained.of_latents and trained.images_shape else trained.kind
    lines += [f"pipeline_tag: {TASKS[kind]}"] if kind in TASKS else []
    lines += ["tags:", *(f"- {tag}" for tag in ("jax", "consistency-models", trained.model.kind.replace("_", "-")))]
    values = [(row, value, number) for row, numbers in metrics.items() for value, number in numbers.items()]
    values = [each for each in values if each[0][:1].isdigit() and each[2] is not None]  # of samples: "1-step"
    if values:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:", "  - task:"]
        lines += [f"      type: {TASKS['images']}", "    dataset:"]
        data = json.dumps(describe(published(trained.record["config"])).data)
        lines += [f"      name: {data}", f"      type: {data}", "    metrics:"]
        for row, value, number in values:
            lines += [
                f"    - type: {value}",
                f"      name: {json.dumps(f'{value}, {row}')}",
                f"      value: {number:.6g}",
            ]
    return "\n".join(["---", *lines, "---"])


def _about(trained: Trained, name: str, parameters: int, dtype: str) -> str:
    kinds = {"consistency": "consistency model", "flow_map": "flow map", "denoiser": "diffusion model"}
    record, imported = trained.record, trained.imported
    made = f"imported from {imported['from']}" if imported else f"trained with cmjax, step {trained.used_step}"
    recipe = f", recipe `{record['recipe']}`" if record.get("recipe") and not imported else ""
    sides = "×".join(map(str, trained.shape))
    classes = f" in {trained.num_classes} classes" if trained.num_classes else ""
    return (
        f"# {name}\n\nA {kinds[trained.model.kind]} of {trained.kind} of {sides}{classes}, {parameters:,} parameters "
        f"in {dtype}: {made}{recipe}. `config.json` has the whole configuration."
    )


def _use(trained: Trained, name: str) -> str:
    label = ", label=jax.numpy.zeros(16, int)" if trained.num_classes else ""
    guidance = f", guidance=jax.numpy.full(16, {trained.samples.guidance:g})" if trained.model.guided else ""
    shape = ", ".join(map(str, (16, *trained.shape)))
    lines = [
        "## Use", "", "```bash", "pip install 'cmjax[hub]'",
        f"cmjax sample --workdir=hf://OWNER/{name} --num=64 --out=samples.png", "```",
    ]  # fmt: skip
    if trained.model.kind == "denoiser":
        return "\n".join(lines)
    times = f"times=({trained.model.constants['t_max']:g},)"
    call = f"cmjax.sample_fn(flow_map, jax.random.key(0), ({shape}), {times}{label}{guidance})"
    python = [
        "```python",
        "import cmjax, jax",
        "",
        f'flow_map = cmjax.load("hf://OWNER/{name}")',
        f"samples = {call}",
        "```",
    ]
    return "\n".join([*lines, "", *python])


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in metrics.values() for column in row))
    heads = [column + ARROWS[better(column)] for column in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in metrics.items():
        cells = ["-" if row.get(column) is None else f"{row[column]:.3f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _licence(trained: Trained, licence: str | None) -> str:
    if licence:
        return f"{licence}."
    imported = trained.imported or {}
    return f"{imported.get('licence', 'None was stated when this folder was written')}."
