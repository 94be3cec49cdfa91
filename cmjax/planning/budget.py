"""Computes least times of a program at a chip's peaks, and writes the page of a plan."""

from typing import Any

from cmjax.system.chips import GIB, Chip

LIMITS = {"arithmetic": "its arithmetic", "memory": "its memory's bandwidth", "links": "the links between chips"}


def bounds(chip: Chip | None, operations: float, moved: float, exchanged: float) -> dict[str, Any]:
    """Compute the least seconds of a program on one device, for its arithmetic, its memory and its links at their
    published peaks, and the largest of them; {} where the chip is not known.

    Args: operations: floating-point ones. moved, exchanged: bytes, from and to memory, and between devices.
    """
    if chip is None:
        return {}
    seconds = {"arithmetic": operations / chip.peak_flops, "memory": moved / chip.hbm_bandwidth}
    if chip.link_bandwidth:
        seconds["links"] = exchanged / chip.link_bandwidth
    limit = max(seconds, key=seconds.__getitem__)
    return {**seconds, "least": seconds[limit], "limit": limit}


def page(report: dict[str, Any]) -> str:
    """Write a plan as Markdown."""
    step, fsdp = report["train_step"], report["fsdp"]
    copies = f"a copy of the parameters in every {fsdp}" if fsdp > 1 else "each with its own copy of the parameters"
    lines = [
        f"# {report['recipe']} on {report['machine']}",
        "",
        f"{report['devices']} {'device' if report['devices'] == 1 else 'devices'} ({report['device_kind']}), "
        f"{copies}; {report['parameters']:,} parameters; {report['steps']:,} updates of {report['batch_size']:,} images"
        + (f", each in {report['grad_accumulation']} parts" if report["grad_accumulation"] > 1 else "")
        + (f", {report['steps_per_call']} updates in one call" if report["steps_per_call"] > 1 else ""),
        "",
    ]
    lines += [f"Assumed: {text}." for text in report["assumed"]] + ([""] if report["assumed"] else [])
    lines += ["## Memory of one device", "", *_memory_table(step["memory"]), ""]
    image, device = _flop(step["operations_per_image"]), _flop(step["operations_per_device"])
    work = f"- {_flop(step['operations'])} of matrix products and convolutions, {image} an image, {device} a device"
    lines += ["## One update", "", work]
    if "collectives" in step:
        lines += [*_speed(report), "", "## What devices exchange in an update", ""]
        lines += _collectives(step["collectives"])
    if report.get("samplers"):
        lines += ["", "## Samplers", "", *_samplers(report["samplers"])]
    lines += ["", "## What would change it", "", *_advice(report), ""]
    return "\n".join(lines)


def _memory_table(memory: dict[str, Any]) -> list[str]:
    names = {
        "state": "state: parameters, averages, optimizer",
        "frozen": "teacher and other frozen weights",
        "batch": "batch, or batches, of one call",
        "other": "padding of these, results",
        "temporaries": "temporaries: activations, gradients",
        "code": "code",
    }
    refused = " (of a program that the compiler refused)" if memory["refused"] else ""
    rows = [f"| {text} | {memory[name] / GIB:.3f} |" for name, text in names.items()]
    verdict = {True: "it fits", False: "**it does not fit**", None: "this device's memory is not in the table"}
    available = memory["available"]
    of = f" of {available / GIB:.2f}" if available else ""
    return [f"| what{refused} | GiB |", "|---|---:|", *rows, f"| **together**{of}: {verdict[memory['fits']]} | "
            f"**{memory['total'] / GIB:.3f}** |"]  # fmt: skip


def _speed(report: dict[str, Any]) -> list[str]:
    step, seconds = report["train_step"], report["train_step"]["seconds"]
    moved = f"{step['bytes_moved_per_device'] / GIB:.2f} GiB read and written by a device"
    lines = [f"- {moved}, as the compiler counts: what stays on the chip between two operations is among it"]
    if not seconds:
        return [*lines, "- no peaks are known of this device: no times"]
    parts = ", ".join(f"{name} {1e3 * seconds[name]:.3g} ms" for name in LIMITS if name in seconds)
    least, by = f"{1e3 * seconds['least']:.3g} ms", LIMITS[seconds["limit"]]
    hours, arithmetic = report["least_hours"], f"{report['hours_of_arithmetic']:.3g}"
    return [
        *lines,
        f"- at the chip's peaks at least {least}, by {by} ({parts})",
        f"- the whole recipe: at least {hours:.3g} hours, {hours * report['devices']:.4g} device hours "
        f"({arithmetic} hours by its arithmetic alone). What is measured is longer: no program holds a chip's peaks",
    ]


def _collectives(kinds: dict[str, dict[str, Any]]) -> list[str]:
    if not kinds:
        return ["Nothing."]
    rows = [
        f"| {kind} | {row['count']} | {row['bytes'] / 2**20:.2f} | {', '.join(sorted(row['bytes_by_type']))} |"
        for kind, row in kinds.items()
    ]
    return ["| kind | count | MiB a device | types |", "|---|---:|---:|---|", *rows]


def _samplers(samplers: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| sampler | samples at once | GiB a device | a sample | at least, ms |", "|---|---:|---:|---:|---:|"]
    for name, row in samplers.items():
        memory, work = row["compiled_memory"]["total"] / GIB, _flop(row["operations"] / row["samples"])
        least = f"{1e3 * row['seconds']['least']:.3g}" if row["seconds"] else "unknown"
        lines.append(f"| {name} | {row['samples']} | {memory:.3f} | {work} | {least} |")
    return lines


def _advice(report: dict[str, Any]) -> list[str]:
    operations = report["train_step"]["operations"]
    lines = [report["fitting"][0].upper() + report["fitting"][1:] + ".", ""] if "fitting" in report else []
    rows = []
    for row in report["advice"]:
        memory = "compile to know" if row["memory"] is None else f"{row['memory'] / GIB:.2f}"
        rows.append(f"| `{row['option']}` | {memory} | {row['operations'] / operations:.2f} |")
    return [*lines, "| option | GiB a device, estimated | arithmetic of an update |", "|---|---:|---:|", *rows]


def _flop(operations: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if operations >= size:
            return f"{operations / size:.3g} {unit}"
    return f"{operations / 1e6:.3g} MFLOP"
