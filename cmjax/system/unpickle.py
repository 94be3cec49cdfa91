"""An interpreter of pickles that imports nothing, and calls nothing but the functions of a table.

`pickletools` decodes the opcodes; what each does is below. The standard library's unpickler cannot do this: it fills
memory up to any index that a file names, allocates any length, hashes keys without end, and calls `__setstate__`.
"""

import pickle
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np


class UnsafeFile(ValueError):
    """A file asks for something that only running code could give."""


@dataclass(frozen=True)
class Global:
    """Holds what a name in a file stands for: `call` makes an inert value; None for a name that is only passed
    around."""

    name: str
    call: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class PickledObject:
    """Holds an object of a class that is not imported: the class's name, and what the object's `__dict__` was."""

    class_name: str
    state: dict[str, Any]


@dataclass(eq=False)
class Unbuilt:
    """Holds an object whose content comes with a later BUILD; `slots` are the memo's references to it."""

    build: Callable[[Any], Any] | None
    slots: list[int] = field(default_factory=list)


class Stream:
    """Reads a stream with a known end, so that a length written in it is never believed beyond that."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.left = file, size, size

    def read(self, count: int) -> bytes:
        """Reads exactly `count` bytes. Raises: ValueError where there are fewer."""
        data = self.file.read(count) if 0 <= count <= self.left else b""
        if len(data) != count:
            raise ValueError("it ends too early")
        self.left -= count
        return data

    def readline(self) -> bytes:
        """Reads up to the next newline; a line longer than any name is cut."""
        data = self.file.readline(min(self.left, 512))
        self.left -= len(data)
        return data


FORBIDDEN = ("__class__", "__dict__", "__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__init__")
"""Attributes that no state sets; they would do nothing here, but a file that has them is not what it says it is."""


def check_state(state: Any) -> None:
    """Raises: UnsafeFile where a state sets an attribute through which Python objects run code."""
    if found := [name for name in FORBIDDEN if isinstance(state, dict) and name in state]:
        raise UnsafeFile(f"sets the attribute {found[0]}")


def check_key(key: Any) -> Any:
    """Gives back a key of a dictionary or set, a scalar or a tuple of some. Others could take for ever to hash or
    compare."""
    # by type, not isinstance: a subclass may hash as it likes
    for part in key if type(key) is tuple and len(key) <= 16 else (key,):
        # hashing a number takes time in its length
        if type(part) is int and abs(part) >= 2**64:
            raise ValueError("a key in it is a huge number")
        if type(part) not in (str, int, float, bool, bytes, type(None)):
            raise ValueError(f"a key in it is a {type(part).__name__}")
    return key


class Machine:
    """Reads pickles that follow one another in `source`.

    table: (module, name) -> the value that a global stands for. persistent: a persistent id -> its value.
    What calls and states may copy is bounded by twice the size of `source`: a file uses each part of it once.
    """

    def __init__(
        self, source: Stream, table: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
    ):
        self.source, self.table, self.persistent, self.budget = source, table, persistent, 2 * source.size

    def load(self) -> Any:
        """Returns the next pickle's value.

        Raises: UnsafeFile naming what is not in the table, or the opcode that is refused; ValueError, LookupError,
                TypeError, OverflowError or struct.error where it is malformed.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(self.source):  # type: ignore[arg-type]
            if opcode.name in REFUSED:
                raise UnsafeFile(f"has the opcode {opcode.name}")
            if opcode.name in LITERALS:
                self.push(argument)
            elif opcode.name in OPCODES:
                OPCODES[opcode.name](self, argument)
            elif opcode.name not in ("FRAME", "STOP"):
                raise ValueError(f"{opcode.name} is not an opcode that such files have")
        return self.stack.pop()

    def push(self, value: Any) -> None:
        if type(value) is int and abs(value) >= 2**512:
            raise ValueError("a number in it is huge")
        self.stack.append(value)

    def spend(self, values: Any) -> None:
        sized = (len(value) for value in values if isinstance(value, bytes | str | tuple | list | dict | set))
        self.budget -= len(values) + sum(sized)
        if self.budget < 0:
            raise ValueError("it uses its parts over and over, which would fill the memory")

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            # an empty frame: POP takes its mark away
            self.pop_mark()

    def pop_last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def put(self, index: int) -> None:
        value = self.memo[index] = self.stack[-1]
        if isinstance(value, Unbuilt):
            value.slots.append(index)

    def target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise UnsafeFile(f"fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def extend(self, items: Iterable[Any]) -> None:
        self.target(list).extend(items)

    def add(self, items: Iterable[Any]) -> None:
        self.target(set).update(map(check_key, items))

    def set_items(self, items: list[Any]) -> None:
        self.target(dict).update(zip(map(check_key, items[::2]), items[1::2], strict=True))

    def dictionary(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def look_up(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnsafeFile("names a global by something else than text")
        if (module, name) not in self.table:
            full = f"{module}.{name}"[:100]
            raise UnsafeFile(f"names {full if full.isprintable() else ascii(full)}")
        self.push(self.table[module, name])

    def call(self) -> None:
        function, arguments = self.pop_last(2)
        if not isinstance(function, Global) or function.call is None or type(arguments) is not tuple:
            raise UnsafeFile(f"calls {function.name if isinstance(function, Global) else type(function).__name__}")
        self.spend(arguments)
        self.push(function.call(*arguments))

    def build(self) -> None:
        target, state = self.pop_last(2)
        self.spend(state if type(state) is tuple else (state,))
        check_state(state)
        if isinstance(target, Unbuilt):
            if target.build is None:
                raise ValueError("an object in it is built twice")
            # references that came before its content mean the object that it now is
            value, target.build = target.build(state), None
            self.memo |= {slot: value for slot in target.slots if self.memo[slot] is target}
            target = value
        elif isinstance(target, PickledObject) and type(state) is dict:
            target.state.update(state)
        # The attributes of an ordered dictionary and the flags of a parameter are not read.
        elif type(target) is not dict and not (type(target) is np.ndarray and type(state) is tuple and len(state) == 3):
            raise UnsafeFile(f"sets the state of a {type(target).__name__}")
        self.push(target)

    def refer(self) -> None:
        if self.persistent is None:
            raise UnsafeFile("refers to an object outside of it")
        self.push(self.persistent(self.stack.pop()))

    def protocol(self, number: int) -> None:
        if number > pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"its pickle protocol is {number}")


REFUSED = ["INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"]
"""Opcodes that call, look up or take in by ways of their own, which no file that is read here needs."""

# Python 2 writes numbers beyond 32 bits as INT.
LITERALS = ["INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"]
LITERALS += ["SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"]
LITERALS += ["SHORT_BINBYTES", "BINBYTES", "BINBYTES8"]

OPCODES: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": Machine.protocol,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "BYTEARRAY8": lambda m, data: m.push(bytes(data)),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop_last(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop_last(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop_last(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "APPEND": lambda m, _: m.extend(m.pop_last(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.dictionary(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop_last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "FROZENSET": lambda m, _: m.push(frozenset(map(check_key, m.pop_mark()))),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": lambda m, names: m.look_up(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.look_up(*m.pop_last(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.refer(),
}
