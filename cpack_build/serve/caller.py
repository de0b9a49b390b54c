"""``cpack_build.Client``: calls a served workflow from Python, and is told how it goes on.

client = Client("http://localhost:3000")
result = client.generate({"photo": Path("cat.png"), "size": 512}, on_progress=print)
result.save("results")
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cpack_build.errors import NetworkError, RunError

if TYPE_CHECKING:
    import requests

__all__ = ["Client", "Generated", "OnProgress"]

OnProgress = Callable[[str, Mapping[str, Any]], None]
"""Is called with each event of the stream: ``queued, started, node, step, preview``, and its data."""


@dataclass(frozen=True)
class Generated:
    """What a run gave: *files* by the names of the workflow's outputs."""

    files: Mapping[str, bytes]

    def save(self, folder: Path | str) -> list[Path]:
        """Write the files to *folder*, which is made; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for name, data in self.files.items():
            path = folder / (name.replace("\\", "/").rpartition("/")[2].lstrip(".") or "file")
            path.write_bytes(data)
            saved.append(path)
        return saved


class Client:
    """A client of the service at *url*; *token* is its ``CPACK_TOKEN``, *timeout* the seconds without any event."""

    def __init__(self, url: str, *, token: str = "", timeout: float = 120) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._opened: requests.Session | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _session(self) -> requests.Session:
        import requests

        if self._opened is None:
            self._opened = requests.Session()
            if self._token:
                self._opened.headers["Authorization"] = f"Bearer {self._token}"
        return self._opened

    def parameters(self) -> dict[str, Any]:
        """The workflow's parameters, as a JSON Schema."""
        with self._asked("GET", "/interface.json") as answer:
            return dict(answer.json())

    def generate(
        self, values: Mapping[str, Any] | None = None, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Generated:
        """Run the workflow with *values* (and *more*) by parameter name, and return its files.

        A :class:`~pathlib.Path` is sent as a file. Interrupted (Ctrl-C, or an error in *on_progress*), the run is
        taken back. Raises :class:`RunError`, with the service's status and words, and :class:`NetworkError`.
        """
        given = {**(values or {}), **more}
        files = {name: value for name, value in given.items() if isinstance(value, Path)}
        with _open_all(files) as opened:
            body: dict[str, Any] = {"data": form_fields(given), "files": opened} if files else {"json": given}
            with self._asked("POST", "/generate/stream", stream=True, **body) as answer:
                for event, data in _events(answer):
                    if event == "result":
                        return Generated({item["name"]: self._fetch(item["url"]) for item in data["outputs"]})
                    if event == "error":
                        raise failure(int(data.get("status", 500)), data)
                    if on_progress is not None:
                        on_progress(event, data)
        raise cut_short(self._url)

    def _fetch(self, path: str) -> bytes:
        with self._asked("GET", path) as answer:
            return answer.content

    def _asked(self, method: str, path: str, **options: Any) -> requests.Response:
        import requests

        try:
            answer = self._session.request(method, self._url + path, timeout=self._timeout, **options)
            if answer.status_code != 200:
                with answer:
                    raise refusal(answer.status_code, answer.content)
            return answer
        except requests.RequestException as error:
            raise silence(self._url, error) from None


@contextlib.contextmanager
def _open_all(files: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        yield {name: (path.name, stack.enter_context(path.open("rb"))) for name, path in files.items()}


def _events(answer: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    import requests

    reader = EventReader()
    try:
        for line in answer.iter_lines(chunk_size=None):
            if (event := reader.feed(line)) is not None:
                yield event
    except requests.RequestException as error:
        raise NetworkError(f"The stream broke ({type(error).__name__}).", hint="Try again.") from None


class EventReader:
    """Reads server-sent events (HTML Standard, 9.2) whose data is one line of JSON."""

    def __init__(self) -> None:
        self._name = ""

    def feed(self, line: bytes) -> tuple[str, dict[str, Any]] | None:
        """Take the next *line*, without its end; the event that it completes, if it does."""
        if line.startswith(b"event: "):
            self._name = line[7:].decode()
        elif line.startswith(b"data: "):
            return self._name, json.loads(line[6:])
        return None


def form_fields(given: Mapping[str, Any]) -> dict[str, str]:
    """The values of *given* that are no files, as fields of a form."""
    plain = {key: value for key, value in given.items() if not isinstance(value, Path)}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}


def silence(url: str, error: Exception) -> NetworkError:
    """What to raise when *url* cannot be asked."""
    return NetworkError(f"{url} does not answer ({type(error).__name__}).", hint="Is the service running there?")


def cut_short(url: str) -> NetworkError:
    """What to raise when the stream of *url* ends before its result."""
    return NetworkError(f"{url} ended the stream without a result.", hint="Its log may say why; try again.")


def refusal(status: int, body: bytes) -> RunError:
    """What to raise for an answer with *status* and *body*."""
    try:
        document = json.loads(body)
    except ValueError:
        document = {}
    return failure(status, document if isinstance(document, dict) else {})


def failure(status: int, document: Mapping[str, Any]) -> RunError:
    """What to raise for the service's error *document*."""
    details = [
        f"{'.'.join(str(part) for part in item.get('loc', ()))}: {item.get('msg', '')}"
        for item in document.get("detail") or ()
        if isinstance(item, dict)
    ]
    text = "; ".join(filter(None, [str(document.get("error") or f"It answered with status {status}."), *details]))
    node = document.get("node") or {}
    return RunError(
        text,
        hint=str(document.get("hint") or ""),
        status=status,
        node_id=str(node.get("id", "")),
        node_class=str(node.get("class", "")),
    )
