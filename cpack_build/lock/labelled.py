"""PyTorch's own index, one for each local version label (``+cu128``, ``+cpu``, ``+rocm6.4``): where it is, and when.

It is asked only once nobody else has what a pin of torch's family names, and only for packages of that family: as pages
of links, for an index would be asked for every package, and this one has old copies of many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cpack_build.errors import NetworkError
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors, local_path
from cpack_build.fetch.urls import redact
from cpack_build.lock.target import FAMILY, label_in
from cpack_build.lock.uv import options_of

__all__ = ["LabelledIndex", "index_of"]

_INDEX = "https://download.pytorch.org/whl/"
"""Below it lies one index for each label. Source: https://pytorch.org/get-started/previous-versions/."""
_ON_INDEX = {"": FAMILY, "rocm": ("pytorch-triton-rocm", "triton-rocm")}
"""Beginning of a label → the packages that are taken from its index."""


@dataclass(frozen=True)
class LabelledIndex:
    """The *pages* of the *index* for one label, which the requirements *pins* name: one page for each package."""

    index: str
    pages: tuple[str, ...]
    pins: tuple[str, ...]

    def may_have(self, said: str) -> bool:
        """Whether what uv *said* is that nobody has something which this index has."""
        names = "|".join(re.escape(page.rstrip("/").rpartition("/")[2]) for page in self.pages)
        text = re.sub(r"\s+", " ", said)
        return bool(names and re.search(rf"no versions? of ({names})\b|\b({names})(==\S+)? was not found", text))

    def options(self, mirrors: Mirrors) -> list[str]:
        """The options that let uv look at its pages; not at those for which a mirror has no folder."""
        pages = [mirrors.apply(page) for page in self.pages]
        return options_of([page for page in pages if _is_there(page)], None, (), Sources())

    def without_page(self, error: NetworkError, mirrors: Mirrors) -> LabelledIndex | None:
        """What is left of it where *error* is that it has no page for some package; else ``None``."""
        for page in self.pages:
            place = redact(mirrors.apply(page))
            if re.search(rf"{re.escape(place)} HTTP status client error \((403|404|410) ", error.message):
                return replace(self, pages=tuple(other for other in self.pages if other != page))
        return None

    def unreachable(self, error: NetworkError, mirrors: Mirrors) -> NetworkError:
        """*error* in terms of this index, where it is the one that did not answer."""
        return self.unasked(error.message) if redact(mirrors.apply(self.index)) in error.message else error

    def unasked(self, why: str) -> NetworkError:
        """That it could not be asked."""
        return NetworkError(
            f"{', '.join(self.pins)}: PyTorch's own index has what is labelled so, {self.index}, and cannot be asked. "
            f"{why}",
            hint=f"Check the network, name a copy of that index with --mirror {self.index}=URL, or wheels with "
            "--find-links.",
        )


def index_of(requirements: Iterable[str]) -> LabelledIndex | None:
    """The index for the label that *requirements* pin torch's family to; ``None`` where they name none."""
    pins = {text: label for text in requirements if (label := label_in(text)) is not None}
    for label in pins.values():
        index = f"{_INDEX}{label}/"
        names = [name for start, names in _ON_INDEX.items() if label.startswith(start) for name in names]
        return LabelledIndex(index, tuple(f"{index}{name}/" for name in names), tuple(pins))
    return None


def _is_there(page: str) -> bool:
    path = local_path(page)
    return path is None or path.is_dir()
