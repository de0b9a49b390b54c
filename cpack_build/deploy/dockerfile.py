"""The Dockerfile of a Bento: ``bentoml containerize`` makes the locked image of it again, with the Bento on top.

It runs nothing. The image's layers are unpacked in their order by ``ADD`` (a thin Bento names the image in ``FROM``
instead), so what is built is what was locked, and needs no network. Models come from the Bento's ``models/``, where
BentoML puts them; links lead there from where the image has them.

BentoML takes it as a Jinja template, and its values come from a lock: no brace of theirs may mean anything
(Dockerfile reference, "ENV"; Jinja, "Escaping").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cpack_build.errors import BadImage, BadInput
from cpack_build.image.config import PORT, SERVICE_ENV

__all__ = ["BENTO_PATH", "ENTRYPOINT", "template"]

BENTO_PATH = "/home/bentoml/bento"
"""Where BentoML and BentoCloud have the Bento in a container (bentoml 1.4, ``container/generate.py``)."""
_LAYERS_APART = 90
"""``ADD`` instructions; what is over it shares the last one, for engines stop at 125 layers."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[0-9]+(:[0-9]+)?|[a-z_][a-z0-9_-]*(:([a-z_][a-z0-9_-]*|[0-9]+))?")

ENTRYPOINT = f"""\
#!/bin/sh
# Understands what BentoML's own entrypoint does, where there is no bash.
set -eu
export TMPDIR="${{TMPDIR:-${{CPACK_DATA:-/data}}/tmp}}"
mkdir -p "$TMPDIR"
if [ -n "${{PORT:-}}" ]; then export BENTOML_PORT="$PORT"; fi
case "${{1:-}}" in
  ""|-*) set -- bentoml serve "$@" "$BENTO_PATH" ;;
  serve|serve-http) set -- bentoml "$@" "$BENTO_PATH" ;;
esac
if [ "$1" = bentoml ]; then shift; set -- /{SERVICE_ENV}/bin/python -m bentoml "$@"; fi
exec "$@"
"""


def template(
    config: Mapping[str, Any], *, origin: str | None, archives: Sequence[str], has_models: bool, whole: bool
) -> str:
    """The text, as a Jinja template that renders to itself.

    *config* is the ``config`` of the image, *origin* the image to begin from (``None`` for nothing), *archives* are the
    paths of the layers over it in the Bento. *whole* means that *origin* is the image itself, which has the
    configuration already. Raises :class:`BadInput` for variables that a Dockerfile cannot say, :class:`BadImage` for a
    configuration that would run something.
    """
    _require_plain(config)
    lines = [f"FROM {origin or 'scratch'}"]
    apart, shared = archives[:_LAYERS_APART], archives[_LAYERS_APART:]
    lines += [f"ADD {path} /" for path in apart]
    if shared:
        lines.append(f"ADD {' '.join(shared)} /")
    if not whole:
        variables = dict(item.partition("=")[::2] for item in config.get("Env") or ())
        lines += [f"ENV {name}={_quoted(name, value)}" for name, value in sorted(variables.items())]
        lines += [f"LABEL {key}={_quoted(key, value)}" for key, value in sorted((config.get("Labels") or {}).items())]
        lines += [f"VOLUME {json.dumps(sorted(config.get('Volumes') or {}))}", "STOPSIGNAL SIGTERM"]
    lines += [
        f"ENV BENTO_PATH={BENTO_PATH} BENTOML_CONTAINERIZED=true",
        f"ENV PATH=$PATH:/{SERVICE_ENV}/bin",  # last: a node that starts `python` means ComfyUI's
        f"WORKDIR {BENTO_PATH}",
    ]
    user = config.get("User") or "1000:1000"
    copied = [
        *(["models ./models"] if has_models else []),
        "env/docker/entrypoint.sh ./env/docker/entrypoint.sh",
        "bento.yaml README.md ./",
        "apis ./apis",
        "src ./src",
    ]
    # BentoML makes the folders of models and imported Bentos for their owner alone.
    lines += [f"COPY --chown={user} {what}" for what in copied]
    lines += [
        f"EXPOSE {PORT}",
        f"USER {user}",
        f"ENTRYPOINT {json.dumps([f'{BENTO_PATH}/env/docker/entrypoint.sh'])}",
        "CMD []",
    ]
    if any(len(line.splitlines()) != 1 for line in lines):
        raise BadImage("The image's config", "has a value of several lines")
    return "".join(f"{line}\n" for line in lines).replace("{", "{{ '{' }}")


def _require_plain(config: Mapping[str, Any]) -> None:
    """See that nothing in *config*, which may be a stranger's, becomes an instruction that runs something."""
    user, triggers = config.get("User"), config.get("OnBuild")
    if user and not (isinstance(user, str) and _USER.fullmatch(user)):
        raise BadImage("The image's config", f"has the User {user!r}, which is none")
    if triggers:  # the engine would run them where it builds, with the network
        raise BadImage("The image's config", "has instructions for a build from it (OnBuild)")
    listed, labels, volumes = config.get("Env") or [], config.get("Labels") or {}, config.get("Volumes") or {}
    if not (
        isinstance(listed, list)
        and isinstance(labels, dict)
        and isinstance(volumes, dict)
        and all(isinstance(item, str) for item in (*listed, *labels.values()))
    ):
        raise BadImage("The image's config", "is none (Env, Labels and Volumes are not what they should be)")


def _quoted(name: str, value: str) -> str:
    if not value.isprintable():
        raise BadInput(
            f"The variable {name} has a character that a Dockerfile cannot hold.",
            hint="Change it in cpack.yaml (`environment`), and lock again.",
        )
    if not _NAME.fullmatch(name) and not re.fullmatch(r"[a-z0-9][a-z0-9._/-]*", name):
        raise BadInput(f"{name!r} cannot be the name of a variable in a Dockerfile.", hint="Rename it in cpack.yaml.")
    return '"' + re.sub(r'(["\\$])', r"\\\1", value) + '"'
