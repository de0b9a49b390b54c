"""What Kubernetes takes for a name, a label, or a quantity: checked before a cluster refuses it.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and …/labels/,
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from cpack_build.errors import UsageError

__all__ = [
    "check_host",
    "check_label",
    "check_object_name",
    "check_secret_key",
    "check_service_name",
    "quantity",
    "service_name",
]

_SERVICE = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""RFC 1035, as Services want it: the strictest of all, so one name fits every object."""
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {
    "": Fraction(1), "m": Fraction(1, 1000), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9),
    "T": Fraction(10**12), "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
}  # fmt: skip


def service_name(wanted: str) -> str:
    """*wanted* (an image's name) as a name that every object may have. Raises :class:`UsageError` when it has none."""
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    try:
        return check_service_name(name, what="The name of the image")
    except UsageError as error:
        raise UsageError(f"{wanted!r} gives no name that Kubernetes takes.", hint="Choose one with --name.") from error


def check_service_name(name: str, *, what: str) -> str:
    """*name* itself if a Service may be called that. Raises :class:`UsageError` naming *what*."""
    if _SERVICE.fullmatch(name) is None:
        raise UsageError(
            f"{what} is {name!r}, which Kubernetes refuses.",
            hint="A name is up to 63 lowercase letters, digits and '-', beginning with a letter, not ending in '-'.",
        )
    return name


def check_object_name(name: str, *, what: str) -> str:
    """*name* itself if a Secret, Gateway or class may be called that (a DNS subdomain). Raises :class:`UsageError`."""
    if len(name) > 253 or _SUBDOMAIN.fullmatch(name) is None:
        raise UsageError(
            f"{what} is {name!r}, which Kubernetes refuses.",
            hint="A name is lowercase letters, digits, '-' and '.', and begins and ends with a letter or digit.",
        )
    return name


def check_host(name: str) -> str:
    """*name* itself if it is a host that rules may name. Raises :class:`UsageError`."""
    plain = name.removeprefix("*.")
    fits = _SUBDOMAIN.fullmatch(plain) is not None and len(name) <= 253
    if not fits or not all(len(part) <= 63 for part in plain.split(".")) or re.fullmatch(r"[0-9.]+", plain):
        raise UsageError(f"--host is {name!r}, which is no host name.", hint="Write it as upscale.example.com.")
    return name


def check_label(key: str, value: str, *, what: str) -> None:
    """Raise :class:`UsageError` unless ``key=value`` may be a label."""
    prefix, slash, name = key.rpartition("/")
    prefix_fits = not slash or (_SUBDOMAIN.fullmatch(prefix) is not None and len(prefix) <= 253)
    if not prefix_fits or _LABEL_NAME.fullmatch(name) is None or _LABEL_VALUE.fullmatch(value) is None:
        raise UsageError(
            f"{what} {key}={value} is no label.",
            hint="Write PREFIX/NAME=VALUE; name and value are up to 63 letters, digits, '-', '_' and '.'.",
        )


def check_secret_key(key: str, *, what: str) -> str:
    """*key* itself if a Secret may have it. Raises :class:`UsageError`."""
    if _SECRET_KEY.fullmatch(key) is None:
        raise UsageError(f"{what} names the key {key!r}, which no Secret can have.", hint="Write SECRET:KEY.")
    return key


def quantity(text: str, *, what: str) -> Decimal:
    """The number that *text* (``500m``, ``8Gi``) stands for. Raises :class:`UsageError` naming *what*."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UsageError(f"{what} is {text!r}.", hint="Write a quantity as Kubernetes does: 500m, 2, 8Gi, 1.5Gi.")
    exact = Fraction(match[1]) * _UNITS[match[2] or ""]
    if not exact:
        raise UsageError(f"{what} is {text!r}.", hint="It must be more than nothing.")
    return Decimal(exact.numerator) / Decimal(exact.denominator)
