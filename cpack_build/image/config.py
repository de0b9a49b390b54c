"""The image config and manifest: what runs, with which environment, over which layers (image-spec config.md,
manifest.md).

Both are canonical JSON. ``created`` is the lock's ``source_date_epoch``; a base image's environment and history come
first, ours win.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from cpack_build.lock.cuda import driver_of
from cpack_build.lock.schema import BaseImage, Lock
from cpack_build.oci.types import CONFIG, MANIFEST, Blob, BytesBlob, canonical_json

__all__ = ["APP", "COMFYUI", "COMFYUI_ENV", "DATA", "PORT", "SERVICE_ENV", "image_config", "image_manifest"]

APP = "app/cpack"
COMFYUI = "app/comfyui"
COMFYUI_ENV = "opt/comfyui"
SERVICE_ENV = "opt/cpack"
DATA = "data"
PORT = 3000
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _environment(lock: Lock, base: Mapping[str, str]) -> dict[str, str]:
    ours = {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": f"/{DATA}/bentoml",
        "COMFYUI_DIR": f"/{COMFYUI}",
        "COMFYUI_PYTHON": f"/{COMFYUI_ENV}/bin/python",
        "CPACK_APP": f"/{APP}",
        "CPACK_COMFYUI_ARGS": json.dumps(list(lock.comfyui_args)),
        "CPACK_DATA": f"/{DATA}",
        "CPACK_HOST": "0.0.0.0",  # noqa: S104 - inside a container, where the engine decides who may connect
        "HOME": f"/{DATA}",
        "LANG": "C.UTF-8",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility,graphics,video",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "PATH": f"/{COMFYUI_ENV}/bin:" + base.get("PATH", _PATH),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "USER": "cpack",
    }
    if (driver := driver_of(lock.target)) is not None:
        # NVIDIA Container Toolkit, "Constraints": an older driver is refused at the start, not by a failing prompt
        ours["NVIDIA_REQUIRE_CUDA"] = f"driver>={driver}"
    if lock.base.kind == "scratch":
        ours["SSL_CERT_FILE"] = "/etc/ssl/certs/ca-certificates.crt"
    return {**base, **ours, **lock.environment}


def image_config(
    lock: Lock, *, history: Sequence[str], diff_ids: Sequence[str], base: Mapping[str, Any] | None
) -> BytesBlob:
    """The config. *history* has a line for each of our layers, as ``docker history`` shows them; *diff_ids* has the
    base's first; *base* is the base image's config document."""
    system, architecture = lock.platform.split("/")
    created = datetime.fromtimestamp(lock.source_date_epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    base = base or {}
    section, base_history = (
        base.get("config"),
        base.get("history"),
    )  # both may be null, and whoever made it is a stranger
    listed = section.get("Env") if isinstance(section, dict) else None
    variables = listed if isinstance(listed, list) else []
    base_env = dict(item.partition("=")[::2] for item in variables if isinstance(item, str))
    document = {
        "architecture": architecture,
        "os": system,
        "created": created,
        "config": {
            "Entrypoint": [f"/{SERVICE_ENV}/bin/python", "-m", "cpack_build.serve"],
            "Env": [f"{key}={value}" for key, value in sorted(_environment(lock, base_env).items())],
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "Labels": {
                "io.cpack.image.revision": str(lock.image_revision),
                "io.cpack.lock.sha256": lock.carried.sha256,
                "io.cpack.version": lock.builder,
            },
            "StopSignal": "SIGTERM",
            "User": "1000:1000",
            "Volumes": {f"/{DATA}": {}},
            "WorkingDir": f"/{DATA}",
        },
        "history": [
            *(base_history if isinstance(base_history, list) else ()),
            *({"created": created, "created_by": f"cpack-build: {line}"} for line in history),
        ],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return BytesBlob(CONFIG, canonical_json(document))


def image_manifest(lock: Lock, *, config: BytesBlob, layers: Sequence[Blob]) -> BytesBlob:
    """The manifest over *layers*, from bottom to top, the base's included."""
    annotations = {
        "io.cpack.image.revision": str(lock.image_revision),
        "io.cpack.lock.sha256": lock.carried.sha256,
        "org.opencontainers.image.created": json.loads(config.data)["created"],
    }
    if isinstance(lock.base, BaseImage):
        annotations["org.opencontainers.image.base.digest"] = lock.base.digest
        annotations["org.opencontainers.image.base.name"] = lock.base.reference
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor.to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
        "annotations": annotations,
    }
    return BytesBlob(MANIFEST, canonical_json(document))
