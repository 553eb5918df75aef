"""What a pickle may say: looked through, opcode by opcode, before torch reads it.

torch's list of what a pickle may name runs nothing, and still lets a file of 60 bytes ask for any
amount of memory, or nest tuples so that hashing one takes years. Must never make what it reads of.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterable
from pickletools import genops
from typing import Any, BinaryIO, Final, NoReturn

import torch

from paramstore.errors import CorruptError, UnsupportedFileError

_UTILS: Final = "torch._utils._rebuild_"
_TENSORS: Final = {f"{_UTILS}tensor": 4, f"{_UTILS}tensor_v2": 6, f"{_UTILS}tensor_v3": 7}
"""What rebuilds a tensor from a storage, and how many arguments it has at least."""
_PARAMETERS: Final = {f"{_UTILS}parameter": 3, f"{_UTILS}parameter_with_state": 4}
_TYPED: Final = "torch._tensor._rebuild_from_type_v2"
_TYPES: Final = {"torch.Tensor", "torch.nn.parameter.Parameter"}
_DICT, _SIZE = "collections.OrderedDict", "torch.Size"
_STORAGES: Final = {
    **dict.fromkeys(("torch.ComplexDoubleStorage",), 16),
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage", "torch.ComplexFloatStorage"), 8),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.ByteStorage", "torch.CharStorage", "torch.BoolStorage"), 1),
    "torch.storage.UntypedStorage": 1,
}
"""Bytes of an element of each kind of storage."""
_DTYPES: Final = {str(d): d.itemsize for d in vars(torch).values() if isinstance(d, torch.dtype)}
_KNOWN: Final = {_TYPED, _DICT, _SIZE, *_TENSORS, *_PARAMETERS, *_TYPES, *_STORAGES, *_DTYPES}

_SHARED: Final = 1 << 20  # bytes up to which the elements of a tensor may share memory
_UNFOLDED: Final = 1_000_000  # values, those that stand at several places counted at each of them
_PROTOCOL: Final = 3  # of pickles; later ones are written in other opcodes
_LINE: Final = 1 << 16  # bytes; names of classes end long before


def check_pickle(path: str, file: BinaryIO, constraints: Collection[str]) -> None:
    """Refuse a file of ``torch.save`` that names or claims more than parameters need.

    Args:
        path: What errors call the file.
        file: The file, open; it is left at its start.
        constraints: The full names of the classes of constraints.

    Raises:
        UnsupportedFileError: it names something else.
        CorruptError: it claims more memory than it has bytes.
        Exception: whatever a damaged file leads to.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    rules = _Rules(path, size, {*constraints, *_KNOWN})
    if file.read(2) == b"PK":
        rules.run(io.BytesIO(_main_record(path, file, size)))
    else:
        file.seek(0)
        for _ in range(5):  # magic number, protocol, system, the state, keys of the storages
            rules.run(_Clipped(file, size))
    file.seek(0)


def _main_record(path: str, file: BinaryIO, size: int) -> bytes:
    # torch's own reader, because another one may find another table of contents in the same file.
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    records = reader.get_all_records()
    if "constants.pkl" in records:
        raise UnsupportedFileError(
            f"{path!r} is an archive of TorchScript; load it with torch.jit.load where you trust "
            f"it, and torch.save its state_dict()"
        )
    if sum(map(reader.get_record_size, records)) > size:
        raise CorruptError(
            f"{path!r} is altered: its parts are larger than the file. torch.save does not compress"
        )
    found: bytes = reader.get_record("data.pkl")
    return found


class _Clipped:
    """A file that is never asked for more than is left of it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, n: int) -> bytes:
        return self._file.read(min(n, self._size - self._file.tell()))

    def readline(self) -> bytes:
        return self._file.readline(_LINE)


class _Node:
    """One value of the pickle: what it is, and how many values there are in it."""

    __slots__ = ("fetched", "kind", "value", "weight")

    def __init__(self, kind: str, value: Any = None, weight: int = 1) -> None:
        self.kind = kind
        """``plain``, ``global``, ``tuple``, ``list``, ``dict``, ``storage``, ``tensor`` or
        ``constraint``."""
        self.value = value
        """What it is, the name of a global, the items of a tuple, the keys of a dictionary, the
        elements of a storage and the bytes of each."""
        self.weight = weight
        self.fetched = False


class _Rules:
    """Goes through pickles as torch's reader does, and keeps only what has to be checked."""

    def __init__(self, path: str, size: int, known: Collection[str]) -> None:
        self._path, self._size, self._known = path, size, known
        self._most = max(_UNFOLDED, 20 * size)
        self._claims: dict[object, int] = {}
        """Bytes of each storage, by its key."""

    def run(self, stream: Any) -> None:
        self._stack: list[_Node] = []
        self._marks: list[list[_Node]] = []
        self._memo: dict[int, _Node] = {}
        for opcode, argument, _ in genops(stream):
            if opcode.name in _CONSTANTS:
                self._push("plain", _CONSTANTS[opcode.name])
            else:
                _STEPS[opcode.name](self, argument)

    # -- the stack -----------------------------------------------------------------

    def _push(self, kind: str, value: Any = None, parts: Iterable[_Node] = ()) -> None:
        self._stack.append(_Node(kind, value))
        self._grow(parts)

    def _grow(self, parts: Iterable[_Node]) -> None:
        """Put values into the one on top."""
        top = self._stack[-1]
        top.weight += sum(part.weight for part in parts)
        if top.weight > self._most:
            self._damaged("the same values stand in each other again and again")

    def _top(self, *kinds: str) -> _Node:
        top = self._stack[-1]
        if top.kind not in kinds or top.fetched:
            self._damaged(f"it changes a {top.kind}")
        return top

    def plain(self, value: object) -> None:
        self._push("plain", value)

    def end(self) -> None:
        if len(self._stack) != 1 or self._marks:
            self._damaged("it ends in the middle")

    def mark(self, _: object) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _marked(self) -> list[_Node]:
        found, self._stack = self._stack, self._marks.pop()
        return found

    def put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def get(self, number: int) -> None:
        node = self._memo[number]
        copy = _Node(node.kind, node.value, node.weight)
        copy.fetched = True
        self._stack.append(copy)

    def tuple(self, _: object) -> None:
        items = self._marked()
        self._push("tuple", items, items)

    def short_tuple(self, length: int) -> None:
        items = [self._stack.pop() for _ in range(length)][::-1]
        self._push("tuple", items, items)

    def append(self, _: object) -> None:
        item = self._stack.pop()
        self._top("list")
        self._grow([item])

    def appends(self, _: object) -> None:
        items = self._marked()
        self._top("list")
        self._grow(items)

    def set_item(self, _: object) -> None:
        item, key = self._stack.pop(), self._stack.pop()
        self._set([key, item])

    def set_items(self, _: object) -> None:
        self._set(self._marked())

    def _set(self, pairs: list[_Node]) -> None:
        top = self._top("dict")
        if any(key.kind != "plain" for key in pairs[::2]):
            self._damaged("a key is neither text nor a number")
        top.value.extend(key.value for key in pairs[::2])
        self._grow(pairs)

    def protocol(self, number: int) -> None:
        if number > _PROTOCOL:
            raise UnsupportedFileError(
                f"{self._path!r} was saved with pickle_protocol={number}, which torch does not "
                f"read without running it; save it again without pickle_protocol"
            )

    # -- what it names -------------------------------------------------------------

    def name(self, text: str) -> None:
        name = text.replace(" ", ".")
        if name not in self._known:
            raise UnsupportedFileError(
                f"{self._path!r} carries {name[:200]!r}, which is neither a tensor nor a known "
                f"constraint; nothing of it was run. Where you trust it, load it yourself with "
                f"torch.load(…, weights_only=False) and save the state_dict() of the module"
            )
        self._push("global", name)

    def new(self, _: object) -> None:
        arguments, cls = self._stack.pop(), self._stack.pop()
        if cls.kind != "global" or cls.value in _KNOWN or arguments.value != []:
            self._damaged("it makes something that is no constraint")
        self._push("constraint")

    def build(self, _: object) -> None:
        state = self._stack.pop()
        self._top("constraint", "dict")
        self._named(state)
        self._grow([state])

    def _named(self, state: _Node) -> None:
        if state.kind != "dict" or not all(isinstance(key, str) for key in state.value):
            self._damaged("attributes without names")

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function.kind != "global" or arguments.kind != "tuple":
            self._damaged("it calls no function")
        self._call(function.value, arguments.value)

    def _call(self, name: str, arguments: list[_Node]) -> None:
        if name == _DICT and not arguments:
            self._push("dict", [])
        elif name == _SIZE and len(arguments) == 1:
            self._push("tuple", arguments[0].value, arguments)
        elif name in _TENSORS and len(arguments) >= _TENSORS[name]:
            dtype = arguments[6].value if name.endswith("v3") else None
            self._tensor(dtype, *arguments[:6])
        elif name in _PARAMETERS and len(arguments) == _PARAMETERS[name]:
            self._of_tensor(arguments[0], *arguments[2:])
        elif name == _TYPED and len(arguments) == 4:
            function, cls, inner, state = arguments
            if function.value not in _TENSORS or cls.value not in _TYPES or inner.kind != "tuple":
                self._damaged("it makes something that is no tensor")
            self._call(function.value, inner.value)
            self._of_tensor(self._stack.pop(), state)
        else:
            self._damaged(f"it calls {name} in a way that torch.save does not")

    # -- what it claims ------------------------------------------------------------

    def storage(self, _: object) -> None:
        what, cls, key, _location, numel, *view = [node.value for node in self._stack.pop().value]
        if what != "storage" or cls not in _STORAGES or not _is_size(numel):
            self._damaged("it names no storage")
        width = _STORAGES[cls]
        self._claims[key] = max(numel * width, self._claims.get(key, 0))
        if sum(self._claims.values()) > self._size:
            self._damaged("it claims more bytes than the file has")
        if view and view[0] is not None:
            _, offset, length = [node.value for node in view[0]]
            if not (_is_size(offset) and _is_size(length) and offset + length <= numel):
                self._damaged("a view that leaves its storage")
            numel = length
        self._push("storage", (numel, width))

    def _tensor(
        self,
        dtype: str | None,
        storage: _Node,
        offset: _Node,
        size: _Node,
        stride: _Node,
        _requires_grad: _Node | None = None,
        hooks: _Node | None = None,
    ) -> None:
        sizes = [node.value for node in size.value]
        strides = [node.value for node in stride.value]
        fits = storage.kind == "storage" and len(sizes) == len(strides)
        if not fits or not all(map(_is_size, (*sizes, *strides, offset.value))):
            self._damaged("a tensor without a shape")
        numel, width = storage.value
        room, width = numel * width, width if dtype is None else _DTYPES[dtype]
        last = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if math.prod(sizes) and (offset.value + last + 1) * width > room:
            self._damaged("a tensor that leaves its storage")
        if math.prod(sizes) * width > max(room, _SHARED):
            self._damaged(
                f"a tensor of shape {tuple(sizes)} whose elements share memory; clone it before "
                f"it is saved"
            )
        self._no_hooks(hooks)
        self._push("tensor")

    def _of_tensor(self, tensor: _Node, *more: _Node) -> None:
        """Take a tensor as it is, with hooks that are empty and attributes that are new."""
        if tensor.kind != "tensor":
            self._damaged("a parameter that is no tensor")
        for node in more:
            self._named(node)
            if any(hasattr(torch.nn.Parameter, key) for key in node.value):
                self._damaged("a tensor with another attribute in the place of its own")
        self._push("tensor", None, more)

    def _no_hooks(self, hooks: _Node | None) -> None:
        if hooks is not None and (hooks.kind != "dict" or hooks.value):
            self._damaged("a tensor that would call something")

    def _damaged(self, why: str) -> NoReturn:
        raise CorruptError(f"{self._path!r} is altered, or no file of parameters: {why:.300}")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


_CONSTANTS: Final = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}
_STEPS: Final[dict[str, Callable[[_Rules, Any], None]]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Rules.plain),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), _Rules.plain),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Rules.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Rules.get),
    "PROTO": _Rules.protocol,
    "STOP": lambda rules, _: rules.end(),
    "MARK": _Rules.mark,
    "TUPLE": _Rules.tuple,
    "EMPTY_TUPLE": lambda rules, _: rules.short_tuple(0),
    "TUPLE1": lambda rules, _: rules.short_tuple(1),
    "TUPLE2": lambda rules, _: rules.short_tuple(2),
    "TUPLE3": lambda rules, _: rules.short_tuple(3),
    "EMPTY_LIST": lambda rules, _: rules._push("list"),
    "EMPTY_DICT": lambda rules, _: rules._push("dict", []),
    "APPEND": _Rules.append,
    "APPENDS": _Rules.appends,
    "SETITEM": _Rules.set_item,
    "SETITEMS": _Rules.set_items,
    "GLOBAL": _Rules.name,
    "NEWOBJ": _Rules.new,
    "REDUCE": _Rules.reduce,
    "BUILD": _Rules.build,
    "BINPERSID": _Rules.storage,
}
"""What each opcode does; torch's reader knows no other."""
