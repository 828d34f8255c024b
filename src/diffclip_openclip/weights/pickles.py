"""Look through a checkpoint's pickle without running it: what it names, and how much it would make.

``torch.load(weights_only=True)`` runs no foreign code, but it does call the few functions that it admits, with whatever
arguments a file gives. Copying one long text a million times is within its rules. Here a pickle's opcodes are walked
with the sizes of what they make in place of the things themselves, so that a file that would make more than it can
honestly hold is refused before anything is allocated.
"""

import pickletools
import struct
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_ADMITTED_ROOTS = ("torch", "collections", "numpy", "argparse", "pathlib", "_codecs")
_ADMITTED = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "complex", "bytearray")}
_MOST = 1 << 60  # sizes stop here, since things that hold each other twice grow without bounds
_ADDS_TO_FIRST = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ")


@dataclass
class _Thing:
    """Stand for an object that unpickling would make."""

    size: int = 1  # opcodes and bytes that it is made of, counted again for each time that it holds the same thing
    largest: int = 0  # the largest whole number in it
    text: str = ""


class _Bounded:
    """Read a file without asking for more than it can have: Python allocates what is asked for beforehand."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._size))

    def readline(self) -> bytes:
        return self._file.readline(self._size)

    def tell(self) -> int:
        return self._file.tell()


@dataclass
class Contents:
    """Describe what pickles would make."""

    names: set[str] = field(default_factory=set)  # of the classes and functions that they refer to
    copied: int = 0  # what is given to functions, in opcodes and bytes
    elements: int = 0  # of the largest storage
    called: set[str] = field(default_factory=set)  # of `names`, those that are called
    complete: bool = False  # whether all of it could be read

    @property
    def foreign(self) -> list[str]:
        """Return the names that no checkpoint of weights needs."""
        return sorted(n for n in self.names if n.partition(".")[0] not in _ADMITTED_ROOTS and n not in _ADMITTED)


def contents(path: Path) -> Contents:
    """Walk through the pickles of a file in any of PyTorch's formats.

    Raises:
        ValueError: an archive whose files are compressed, or larger than itself.
    """
    found = Contents()
    with path.open("rb") as file:
        begins = _archived(path) if file.read(2) == b"PK" else [0]
        with suppress(Exception):  # a damaged file may make pickletools raise anything
            for begin in begins:
                file.seek(begin)
                # the older format is a number, a version, the system, the content, and storages' keys
                for _ in range(1 if begin else 5):
                    _walk(_Bounded(file, path.stat().st_size), found)
            found.complete = bool(begins)
    return found


def _archived(path: Path) -> list[int]:
    """Return where in an archive pickles begin; nowhere in a damaged one.

    They are not read by zipfile, which refuses wrong checksums: PyTorch may be told to leave them out.

    Raises:
        ValueError: as :func:`contents`.
    """
    begins = []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = archive.infolist()
            for info in infos:
                if info.filename.endswith("data.pkl"):
                    file.seek(info.header_offset + 26)
                    name, extra = struct.unpack("<HH", file.read(4))
                    begins.append(info.header_offset + 30 + name + extra)
    except Exception:  # as above, of zipfile
        return []
    total = sum(info.file_size for info in infos)
    if total > path.stat().st_size or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ValueError(
            f"{path} is an archive of {path.stat().st_size} bytes whose files have {total}; PyTorch's are not "
            "compressed. Save the weights again"
        )
    return begins


def _walk(pickle: _Bounded, found: Contents) -> None:
    """Do what ``pickletools.dis`` does to check a pickle, with sizes."""
    stack: list[_Thing | None] = []  # None stands for a mark
    memo: dict[int, _Thing] = {}
    argument: Any  # of any type, which goes by the opcode
    for opcode, argument, _ in pickletools.genops(pickle):  # type: ignore[arg-type]  # all of a file that is needed
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = _thing(stack[-1])
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        if name == "DUP":
            stack.append(stack[-1])
            continue
        before = opcode.stack_before
        parts: list[_Thing] = []
        if pickletools.markobject in before or name == "POP_MARK":
            while (part := stack.pop()) is not None:
                parts.append(part)
            before = before[: before.index(pickletools.markobject)] if pickletools.markobject in before else []
        parts += [_thing(stack.pop()) for _ in before]
        if name == "MARK":
            stack.append(None)
        elif name in _ADDS_TO_FIRST:
            first = parts.pop()
            first.size, first.largest = _sum(first.size, parts), max([first.largest, *(p.largest for p in parts)])
            stack.append(first)
        elif opcode.stack_after:
            stack.append(_made(name, argument, parts, found))


def _thing(thing: _Thing | None) -> _Thing:
    if thing is None:
        raise ValueError("a mark where an object is needed")
    return thing


def _sum(size: int, parts: list[_Thing]) -> int:
    return min(_MOST, size + sum(part.size for part in parts))


def _made(name: str, argument: object, parts: list[_Thing], found: Contents) -> _Thing:
    """Return what an opcode makes of ``parts``, the last of which was put on the stack first."""
    made = _Thing(_sum(1, parts), max((part.largest for part in parts), default=0))
    if isinstance(argument, str | bytes | bytearray):
        made.size += len(argument)
        made.text = argument if isinstance(argument, str) else ""
    elif isinstance(argument, int) and not isinstance(argument, bool):
        made.largest = abs(argument)
    if name in ("GLOBAL", "INST", "STACK_GLOBAL"):
        words = [part.text for part in reversed(parts)] if name == "STACK_GLOBAL" else str(argument).split(" ")
        made.text = ".".join(words[:2])
        found.names.add(made.text)
    if name in _CALLS:
        found.copied = min(_MOST, found.copied + made.size)
        found.called.add(parts[-1].text if parts and name != "INST" else made.text)
        made.text = ""
    if name in ("BINPERSID", "PERSID"):
        found.elements = max(found.elements, made.largest)
        made.largest = 0
    return made
