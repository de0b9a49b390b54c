"""What a pickled model (.ckpt, .pt, .pth, .bin) would import when it is loaded, found without loading it.

A pickle is a program; its opcodes are read (``pickletools``), never run. What it imports decides: names that every
checkpoint needs are safe, names that can run commands are dangerous, all others are unknown. PyTorch's zips
(``…/data.pkl``), its old format (several pickles, one after the other) and plain pickles are understood; whatever hides
its imports counts as dangerous.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cpack_build.fetch.store import Store, StoredFile

__all__ = ["PICKLED", "Verdict", "scan", "scan_file", "verdict_of"]

PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".pt2")
_MEMO = "pickle-1"
"""Under which verdicts are remembered; another number for other rules."""
_LIMIT = 64 << 20
"""Bytes of a pickle's program that are read: that of the largest checkpoint has about 5 MB."""
_SAFE = (
    r"collections\.(OrderedDict|defaultdict|Counter)|_codecs\.encode|argparse\.Namespace|(__builtin__|builtins)\.(set|"
    r"frozenset|list|dict|tuple|int|float|complex|str|bool|bytes|bytearray|slice|range|object)|copyreg\._reconstructor|"
    r"torch\.(\w+Storage|Size|device|dtype|Tensor|nn\.Parameter|nn\.parameter\.Parameter|float\w*|bfloat16|half|double|"
    r"u?int\d+|long|short|bool|q\w+|complex\d+|serialization\._get_layout|_utils\._rebuild_\w+|storage\.\w+Storage|"
    r"_tensor\._rebuild_from_type_v2|per_tensor_affine|strided|_C\._nn\.gelu)|"
    r"numpy(\._?core)?\.(multiarray\.(_reconstruct|scalar)|ndarray|dtype|float\w*|int\w*|numeric\._frombuffer)|"
    r"numpy\.dtypes\.\w+|pathlib\.(Pure)?(Posix|Windows)?Path|datetime\.(datetime|date|timedelta|timezone)"
)
_DANGEROUS = (
    r"(os|posix|nt|subprocess|commands|sys|shutil|socket|socketserver|ssl|http\.\w+|urllib\.\w+|requests(\.\w+)*|"
    r"runpy|pty|platform|importlib(\.\w+)*|imp|pkgutil|pip(\.\w+)*|webbrowser|ctypes(\.\w+)*|code|codeop|bdb|pdb|"
    r"timeit|profile|cProfile|trace|multiprocessing(\.\w+)*|asyncio(\.\w+)*|threading|signal|pickle|_pickle|cloudpickle|"
    r"dill|marshal|shelve|types|inspect|operator|functools|builtins|__builtin__|tempfile|pydoc|idlelib(\.\w+)*|"
    r"torch\.(load|hub|jit|serialization|utils\.(cpp_extension|data)|package|_dynamo|testing)(\.\w+)*|"
    r"numpy\.testing(\.\w+)*|distutils(\.\w+)*|setuptools(\.\w+)*|test\.\w+)\..+"
)


@dataclass(frozen=True)
class Verdict:
    """What was found: imports (``module.name``) that are *unknown*, and that are *dangerous*; *names* are texts of the
    pickle that look like names of tensors."""

    unknown: tuple[str, ...]
    dangerous: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def is_dangerous(self) -> bool:
        return bool(self.dangerous)

    @property
    def level(self) -> Literal["safe", "unknown", "dangerous"]:
        """The whole in one word."""
        return "dangerous" if self.dangerous else "unknown" if self.unknown else "safe"


def scan_file(path: Path, *, name: str = "") -> Verdict | None:
    """The verdict on the file at *path*, called *name*; ``None`` if neither its name nor its bytes are a pickle's."""
    suffix = Path(name or path).suffix.lower()
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        is_pickle = head[:1] == b"\x80" or head.startswith(b"PK\x03\x04")
        if suffix not in PICKLED and not is_pickle:
            return None
        return scan(file)


def verdict_of(file: StoredFile, *, name: str, store: Store) -> Verdict | None:
    """:func:`scan_file` of a file whose hash is known: read once, then remembered in *store*."""
    key = f"{file.sha256}:{Path(name).suffix.lower() in PICKLED}"
    known = store.recall(_MEMO, key)
    if known is not None:
        texts = json.loads(known)
        return Verdict(*map(tuple, texts)) if texts is not None else None
    verdict = scan_file(file.path, name=name)
    file.require_unchanged()
    store.remember(_MEMO, key, json.dumps(astuple(verdict) if verdict is not None else None))
    return verdict


def scan(file: IO[bytes]) -> Verdict:
    """The verdict on an open, seekable file."""
    found = _Found()
    if zipfile.is_zipfile(file):
        _scan_zip(file, found)
    else:
        file.seek(0)
        _scan_stream(file, found, many=True)
    imports = sorted(found.imports)
    doubtful = [one for one in imports if not re.fullmatch(_SAFE, one)]
    dangerous = [one for one in doubtful if re.fullmatch(_DANGEROUS, one) or " " in one]
    unknown = [one for one in doubtful if one not in dangerous]
    return Verdict((*unknown, *found.odd), (*dangerous, *found.hidden), tuple(sorted(found.names)))


class _Found:
    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.hidden: list[str] = []
        self.odd: list[str] = []
        self.names: set[str] = set()


def _scan_zip(file: IO[bytes], found: _Found) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = entry.filename
                if name.endswith((".pkl", ".pickle")):
                    if entry.flag_bits & 1:
                        found.hidden.append(f"something encrypted in {name!a:.80}")
                        continue
                    with archive.open(entry) as member:
                        _scan_stream(member, found, many=False)
                elif re.search(r"(^|/)code/.+\.py$", name):
                    found.odd.append(f"TorchScript code in {name!a:.80}")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        found.hidden.append(f"something in a damaged zip ({error})")


def _scan_stream(file: IO[bytes], found: _Found, *, many: bool) -> None:
    reader = _Bounded(file)
    count = 0
    while True:
        try:
            _scan_one(reader, found)
        except _TooLong:
            found.hidden.append("something beyond what is read of a pickle")
            return
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, EOFError) as error:
            # Data that is no pickle follows the pickles of PyTorch's old format; a broken first one hides something.
            if count == 0 and reader.is_pickle:
                found.hidden.append(f"something in a damaged pickle ({str(error)[:60]})")
            elif count == 0 and reader.count:
                found.odd.append("no sound pickle")
            return
        count += 1
        if not many:
            return


def _scan_one(reader: _Bounded, found: _Found) -> None:
    """One pickle, up to its STOP.

    STACK_GLOBAL takes its names off the stack, where strings come directly or from the memo. Only names that were the
    last two things pushed are believed: with anything in between they might be others.
    """
    pushed: list[str] = []
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(reader):  # type: ignore[arg-type]
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = pushed[-1] if pushed else None
            continue
        text = None
        if name in ("GET", "BINGET", "LONG_BINGET"):
            text = memo.get(int(str(argument)))
        elif isinstance(argument, str) and ("STRING" in name or "UNICODE" in name):
            text = argument
            if len(text) < 300 and re.fullmatch(r"[\w-]+\.[\w.-]+", text):
                found.names.add(text)
        if text is not None:
            pushed = [*pushed[-1:], text]
            continue
        if name in ("GLOBAL", "INST"):
            found.imports.add(str(argument).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL" and len(pushed) == 2:
            found.imports.add(".".join(pushed))
        elif name == "STACK_GLOBAL":
            found.hidden.append("something whose name it computes")
        elif name in ("EXT1", "EXT2", "EXT4"):
            found.hidden.append("something by a number")
        pushed = []


class _TooLong(Exception):
    """More was to be read than a program needs."""


class _Bounded:
    """Reads no more than the limit, however much a pickle says that follows."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0
        self.is_pickle = False

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.count + size > _LIMIT:
            raise _TooLong
        data = self._file.read(size)
        self.is_pickle = self.is_pickle or (self.count == 0 and data == b"\x80")
        self.count += len(data)
        return data

    def readline(self) -> bytes:
        data = self._file.readline(1 << 16)
        self.count += len(data)
        if self.count > _LIMIT:
            raise _TooLong
        return data
