"""Pickles as data. A pickle is a program: it names functions of any module, and whoever unpickles it calls them.

Here nothing is looked up and nothing is called. What a pickle names comes back as a `Name`, what it would call as a `Call`, what it would
make of a class as a `Made`, and whoever asked decides which of these he understands; the rest is numbers, text, tuples, lists and
dictionaries. So the worst that a file can do is to be refused.
"""

import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from attrib.core.types import AttribError, FormatError, first_line

LARGEST_PICKLE = 1 << 26
"""Bytes of a pickle beside which its tensors lie, at most."""
LONGEST_NAME = 1 << 10
"""Bytes of the name of a module or of what is in it, at most."""
MOST_STEPS = 1 << 16
"""Steps of a pickle that is read as data, at most: a config and a few tensors take some hundred."""


class DamagedError(FormatError):
    """What is wrong with a file, of which `translated` makes an error that names it."""


@dataclass(frozen=True)
class Name:
    """A function or class, by the name that the pickle gives it: "torch.FloatStorage"."""

    full: str

    def __repr__(self) -> str:
        return self.full if self.full.isprintable() else ascii(self.full)


@dataclass(frozen=True)
class Call:
    """What a pickle would call, and with what."""

    function: Any
    arguments: Any


@dataclass
class Made:
    """What a pickle would make of a class, and the attributes that it would get."""

    cls: Any
    arguments: Any
    state: Any = None


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
"""Steps that put their own argument on the stack."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int)


def read_pickle(stream: BufferedIOBase, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value of the pickle that begins where a stream stands, which then stands behind it.

    An OrderedDict is a dictionary, whose own attributes (torch keeps versions of modules there) are left out.

    Args:
        persistent: makes of its key a thing that lies beside the pickle; without it, none may.

    Raises:
        DamagedError, ValueError, IndexError, KeyError, TypeError: for a pickle that is damaged, too long, or of steps that neither torch
            nor Python's pickle (protocol 2 and later) write for numbers, text and objects: see `translated`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for step, (operation, given, _) in enumerate(pickletools.genops(cast(IO[bytes], _Bounded(stream)))):
        argument: Any = given
        if step == MOST_STEPS:
            raise DamagedError(f"its pickle has more than {MOST_STEPS:,} steps")
        name = operation.name
        if name == "STOP":
            break
        if name in ("PROTO", "FRAME"):
            continue
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "BINPERSID":
            if persistent is None:
                raise DamagedError("its pickle names what lies beside it, where nothing does")
            stack.append(persistent(stack.pop()))
        else:
            _step(name, argument, stack)
    [value] = stack
    return value


class _Bounded:
    """A stream of which no more is asked than it has: a reader takes memory for what it is asked, before it looks what there is."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self.stream, self.tell, begun = stream, stream.tell, stream.tell()
        self.end = stream.seek(0, 2)
        stream.seek(begun)

    def read(self, count: int) -> bytes:
        return self.stream.read(min(count, self.end - self.tell()))

    def readline(self) -> bytes:
        return self.stream.readline(LONGEST_NAME)


def _step(name: str, argument: Any, stack: list[Any]) -> None:
    """One step that changes the stack alone."""
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _ARGUMENTS:
        stack.append(argument)
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("EMPTY_LIST", "EMPTY_DICT"):
        stack.append([] if name == "EMPTY_LIST" else {})
    elif name in _TUPLES:
        stack.append(tuple(_last(stack, _TUPLES[name])))
    elif name == "TUPLE":
        stack.append(tuple(_marked(stack)))
    elif name in ("APPEND", "APPENDS"):
        values = _marked(stack) if name == "APPENDS" else _last(stack, 1)
        _a(list, stack[-1]).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _marked(stack) if name == "SETITEMS" else _last(stack, 2)
        _fill(_a(dict, stack[-1]), values)
    elif name == "GLOBAL":
        stack.append(Name(str(argument).replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        module, own = _last(stack, 2)
        stack.append(Name(f"{_a(str, module)}.{_a(str, own)}"))
    elif name == "REDUCE":
        function, arguments = _last(stack, 2)
        is_ordered = function == Name("collections.OrderedDict") and arguments == ()
        stack.append({} if is_ordered else Call(function, arguments))
    elif name == "NEWOBJ":
        stack.append(Made(*_last(stack, 2)))
    elif name == "BUILD":
        (state,) = _last(stack, 1)
        if isinstance(stack[-1], Call) and isinstance(stack[-1].function, Name):
            raise DamagedError(f"its pickle gives attributes to what calling {stack[-1].function!r:.80} would give")
        if not isinstance(stack[-1], dict):
            _a(Made, stack[-1]).state = state
    else:
        raise DamagedError(f"its pickle has a step {name}, which saving tensors and a config does not take")


def _last(stack: list[Any], count: int) -> list[Any]:
    """Take the last values off."""
    found = stack[-count:]
    if len(found) < count or any(value is _MARK for value in found):
        raise DamagedError("its pickle takes values that it never put down")
    del stack[-count:]
    return found


def _marked(stack: list[Any]) -> list[Any]:
    """Take off all values behind the last mark, and the mark."""
    at = next((place for place in range(len(stack) - 1, -1, -1) if stack[place] is _MARK), None)
    if at is None:
        raise DamagedError("its pickle takes values that it never put down")
    found = stack[at + 1 :]
    del stack[at:]
    return found


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise DamagedError(f"its pickle fills {type(value).__name__} as if it were {kind.__name__}")
    return value


def _fill(made: dict[Any, Any], values: list[Any]) -> None:
    keys = values[::2]
    if len(values) % 2 or any(type(key) not in _KEYS for key in keys):
        raise DamagedError("its pickle has keys that are neither text nor whole numbers")
    made.update(zip(keys, values[1::2], strict=True))


@contextmanager
def translated(path: Path, remedy: str) -> Iterator[None]:
    """Damage, and whatever zipfile, pickletools, zlib and torch raise at a file that is damaged, as a FormatError that names the file."""
    try:
        yield
    except DamagedError as error:
        raise FormatError(f"{path}: {error}; {remedy}") from error
    except AttribError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # each of them hands on whatever its parts raise
        raise FormatError(f"{path}: not torch's, or damaged ({first_line(error)[:200]}); {remedy}") from error


class Zipped(NamedTuple):
    """A zip as torch.save writes it, looked at: the folder in it, and its one pickle."""

    folder: str
    pickle: bytes


def zipped(archive: zipfile.ZipFile, size: int) -> Zipped:
    """The pickle of a zip that is no larger than it looks.

    Args:
        size: bytes of the file.

    Raises:
        DamagedError: what is in it is compressed, or overlaps, so that it could become larger than the file; or it is not torch's.
    """
    entries = archive.infolist()
    packed = [each for each in entries if each.compress_type != zipfile.ZIP_STORED or each.compress_size != each.file_size]
    if packed or sum(each.file_size for each in entries) > size:
        raise DamagedError("what is in its zip is compressed, or overlaps, as torch.save never writes it")
    pickles = [each for each in entries if each.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
        raise DamagedError(f"its zip has {len(pickles)} pickles, or one of more than {LARGEST_PICKLE:,} bytes")
    return Zipped(pickles[0].filename.removesuffix("/data.pkl"), archive.read(pickles[0]))
