"""Pickles read as data: an interpreter of pickle's opcodes that imports nothing and calls nothing but its own table.

The standard library's unpickler is not used, because some opcodes pass by its `find_class` (the extension registry,
BUILD's `__setstate__`, a huge memo index); here an opcode does what is written below or is refused.
"""

import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np


class UnsafeFile(ValueError):
    """A file asks for something that only running code could give."""


@dataclass(frozen=True)
class Global:
    """What a name in a file stands for: `call` makes an inert value; None for a name that is only passed around."""

    name: str
    call: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Module:
    """An object of PyTorch's, as data: the name of its class, and what its `__dict__` was."""

    class_name: str
    state: dict[str, Any]


@dataclass(eq=False)
class Unbuilt:
    """An object whose content comes with a later BUILD; `slots` are the memo's references to it."""

    build: Callable[[Any], Any] | None
    slots: list[int] = field(default_factory=list)


class Source:
    """A stream with a known end, so that a length written in it is never believed beyond that."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.left = file, size, size

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises: ValueError where there are fewer."""
        if not 0 <= count <= self.left:
            raise ValueError("it ends too early")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError("it ends too early")
        return data

    def line(self) -> str:
        """Up to the next newline, which is left out; longer lines than any name are refused."""
        data = self.file.readline(min(self.left, 512))
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise ValueError("a line in it has no end")
        return data[:-1].decode()


FORBIDDEN = ("__class__", "__dict__", "__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__init__")
"""Attributes that no state sets; they would do nothing here, but a file that has them is not what it says it is."""


def check_state(state: Any) -> None:
    """Raises: UnsafeFile where a state sets an attribute through which Python objects run code."""
    if found := [name for name in FORBIDDEN if isinstance(state, dict) and name in state]:
        raise UnsafeFile(f"sets the attribute {found[0]}")


def check_key(key: Any) -> Any:
    """A key of a dictionary or set: a scalar, or a tuple of some. Others could take for ever to hash or compare."""
    for part in key if type(key) is tuple and len(key) <= 16 else (key,):
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
        self, source: Source, table: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
    ):
        self.source, self.table, self.persistent, self.budget = source, table, persistent, 2 * source.size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next pickle's value.

        Raises: UnsafeFile naming what is not in the table, or the opcode that is refused; ValueError, IndexError,
                KeyError, TypeError, OverflowError or struct.error where it is malformed.
        """
        self.stack, self.marks, self.memo = [], [], {}
        while (code := self.source.read(1)) != pickle.STOP:
            if (run := OPCODES.get(code)) is None:
                if code in REFUSED:
                    raise UnsafeFile(f"has the opcode {REFUSED[code]}")
                raise ValueError(f"byte {code!r} is not an opcode that such files have")
            run(self)
        return self.stack.pop()

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self.source.read(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
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

    def integer(self, size: int) -> None:
        if not 0 <= size <= 64:
            raise ValueError("a number in it is huge")
        self.push(int.from_bytes(self.source.read(size), "little", signed=True))

    def written_integer(self) -> None:
        digits = self.source.line().removesuffix("L")
        self.push({"00": False, "01": True}.get(digits, int(digits)))

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
            value, target.build = target.build(state), None
            for slot in target.slots:
                if self.memo[slot] is target:
                    self.memo[slot] = value
            target = value
        elif isinstance(target, Module) and type(state) is dict:
            target.state.update(state)
        # The attributes of an ordered dictionary and the flags of a parameter are not read.
        elif type(target) is not dict and not (type(target) is np.ndarray and type(state) is tuple and len(state) == 3):
            raise UnsafeFile(f"sets the state of a {type(target).__name__}")
        self.push(target)

    def refer(self) -> None:
        if self.persistent is None:
            raise UnsafeFile("refers to an object outside of it")
        self.push(self.persistent(self.stack.pop()))

    def protocol(self) -> None:
        if (number := self.unpack("B")) > pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"its pickle protocol is {number}")


OPCODES: dict[bytes, Callable[[Machine], Any]] = {
    pickle.PROTO: Machine.protocol,
    pickle.FRAME: lambda m: m.source.read(8),
    pickle.MARK: Machine.mark,
    pickle.POP: Machine.pop,
    pickle.POP_MARK: Machine.pop_mark,
    pickle.DUP: lambda m: m.push(m.stack[-1]),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: Machine.written_integer,  # Python 2 writes numbers beyond 32 bits so
    pickle.BININT: lambda m: m.push(m.unpack("<i")),
    pickle.BININT1: lambda m: m.push(m.unpack("<B")),
    pickle.BININT2: lambda m: m.push(m.unpack("<H")),
    pickle.LONG1: lambda m: m.integer(m.unpack("<B")),
    pickle.LONG4: lambda m: m.integer(m.unpack("<i")),
    pickle.BINFLOAT: lambda m: m.push(m.unpack(">d")),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.source.read(m.unpack("<B")).decode()),
    pickle.BINSTRING: lambda m: m.push(m.source.read(m.unpack("<i")).decode()),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.source.read(m.unpack("<B")).decode()),
    pickle.BINUNICODE: lambda m: m.push(m.source.read(m.unpack("<I")).decode()),
    pickle.BINUNICODE8: lambda m: m.push(m.source.read(m.unpack("<Q")).decode()),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.source.read(m.unpack("<B"))),
    pickle.BINBYTES: lambda m: m.push(m.source.read(m.unpack("<I"))),
    pickle.BINBYTES8: lambda m: m.push(m.source.read(m.unpack("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.push(m.source.read(m.unpack("<Q"))),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(tuple(m.pop_last(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.pop_last(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.pop_last(3))),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.pop_mark()),
    pickle.APPEND: lambda m: m.extend(m.pop_last(1)),
    pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: lambda m: m.dictionary(m.pop_mark()),
    pickle.SETITEM: lambda m: m.set_items(m.pop_last(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.ADDITEMS: lambda m: m.add(m.pop_mark()),
    pickle.FROZENSET: lambda m: m.push(frozenset(map(check_key, m.pop_mark()))),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.BINPUT: lambda m: m.put(m.unpack("<B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.unpack("<I")),
    pickle.BINGET: lambda m: m.push(m.memo[m.unpack("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.unpack("<I")]),
    pickle.GLOBAL: lambda m: m.look_up(m.source.line(), m.source.line()),
    pickle.STACK_GLOBAL: lambda m: m.look_up(*m.pop_last(2)),
    pickle.REDUCE: Machine.call,
    pickle.NEWOBJ: Machine.call,
    pickle.BUILD: Machine.build,
    pickle.BINPERSID: Machine.refer,
}
REFUSED = {
    getattr(pickle, name): name
    for name in ("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER")
}
"""Opcodes that call, look up or take in by ways of their own, which neither PyTorch nor NVIDIA's pickles need."""
