"""The collectives of a compiled program, read from its optimised HLO text."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
WIDTHS = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
"""Bytes of the element types whose names do not end in their bits."""
_TPU_REDUCE_SCATTER = "all-reduce-scatter"
"""A TPU's compiler writes a reduce-scatter as a computation of this name that reduces and slices."""
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.$-]+)\s*\(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.$-]+ = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.$-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.$-]+)")
_WAITING = re.compile(r"\basync-(?:update|done)\(")
_CONDITION = re.compile(r"\bcondition=%?([\w.$-]+)")
_CONSTANT = re.compile(r"^s32\[\]\S* constant\((\d+)\)", re.MULTILINE)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TPU_CHAIN = re.compile(r'\bchain_id="\d+"')
"""The mark that the parts of one exchange have in common; a TPU's compiler spreads them over other computations."""
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_OPERATION = re.compile(rf"(?:^|\s)({'|'.join(KINDS)})(-start)?\(")


@dataclass(frozen=True)
class Collective:
    """Holds one exchange between devices. bytes: of its result on one device, by element type. times: a run performs
    it."""

    kind: str
    bytes: dict[str, int]
    times: int

    @property
    def total(self) -> int:
        return self.times * sum(self.bytes.values())


def read_collectives(text: str) -> list[Collective]:
    """List the collectives of an HLO text, each with how often one run of the program performs it.

    A loop's body counts as often as the loop runs, or once where the text does not say; each branch of a condition
    counts.
    """
    computations, results, entry = _computations(text)
    collectives: dict[object, Collective] = {}
    for name, times in _executions(computations, entry).items():
        for place, line in enumerate(computations[name]):
            if (operation := _OPERATION.search(line)) is None:
                continue
            kind, result, started = operation[1], line[: operation.start()], operation[2] is not None
            # of one exchange's parts the largest counts
            chain = _TPU_CHAIN.search(line)
            key = (kind, chain[0]) if chain else (name, place)
            if name.startswith(_TPU_REDUCE_SCATTER):
                kind, result = "reduce-scatter", results[name]
            one = Collective(kind, _result_bytes(result, kind, started=started), times)
            if key not in collectives or one.total > collectives[key].total:
                collectives[key] = one
    return list(collectives.values())


def summarize(collectives: list[Collective]) -> dict[str, dict]:
    """Sum collectives by kind: their count, the bytes of their results on one device, and those by element type."""
    kinds: dict[str, dict] = {}
    for one in sorted(collectives, key=lambda one: KINDS.index(one.kind)):
        row = kinds.setdefault(one.kind, {"count": 0, "bytes": 0, "bytes_by_type": defaultdict(int)})
        row["count"] += one.times
        row["bytes"] += one.total
        for element, size in one.bytes.items():
            row["bytes_by_type"][element] += one.times * size
    return {kind: {**row, "bytes_by_type": dict(row["bytes_by_type"])} for kind, row in kinds.items()}


def _computations(text: str) -> tuple[dict[str, list[str]], dict[str, str], str]:
    """Parse the instructions of each computation, its result's type, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    results: dict[str, str] = {}
    entry, current = "", None
    for line in text.splitlines():
        if (header := _HEADER.match(line)) is not None:
            current = computations.setdefault(header[1], [])
            results[header[1]] = line.rpartition("->")[2]
            entry = header[1] if line.startswith("ENTRY") else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)) is not None:
            current.append(instruction[1])
    return computations, results, entry


def _executions(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Count how often each computation runs."""
    times = dict.fromkeys(computations, 0)
    times[entry] = 1
    # callers first: the text has them behind their callees
    for name in reversed(computations):
        for line in computations[name] if times[name] else ():
            body = _BODY.search(line)
            trips = _trips(line, computations) if body else 1
            # it names the computation that its start called
            if _WAITING.search(line):
                continue
            called = _CALLED.findall(line)
            called += [part.strip().lstrip("%") for group in _BRANCHES.findall(line) for part in group.split(",")]
            for callee in called:
                if callee in times:
                    times[callee] += times[name] * (trips if body and callee == body[1] else 1)
    return {name: count for name, count in times.items() if count}


def _trips(loop: str, computations: dict[str, list[str]]) -> int:
    """Counts how often a loop runs: as annotated, or by its condition `counter < constant`; 1 where unknown."""
    if (noted := _TRIPS.search(loop)) is not None:
        return int(noted[1])
    condition = "\n".join(computations.get(name[1], ())) if (name := _CONDITION.search(loop)) else ""
    constants = _CONSTANT.findall(condition)
    return int(constants[0]) if len(constants) == 1 and "direction=LT" in condition else 1


def _result_bytes(result: str, kind: str, *, started: bool) -> dict[str, int]:
    # a started exchange's result also holds its operands, and may hold counters
    arrays = [(element, math.prod(map(int, filter(None, size.split(","))))) for element, size in _ARRAY.findall(result)]
    if started and kind != "all-reduce" and len(arrays) > 1:
        arrays = [array for array in arrays if array not in (("u32", 1), ("s32", 1))]
        arrays = arrays[len(arrays) // 2 :]
    sizes: dict[str, int] = defaultdict(int)
    for element, size in arrays:
        bits = re.match(r"[a-z]+(\d+)", element)
        # elements of four bits count as a byte
        sizes[element] += size * WIDTHS.get(element, max(int(bits[1]) // 8, 1) if bits else 0)
    return dict(sizes)
