"""System packages are unpacked under a merged /usr, with what maintainer scripts would do done as data."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.image import unpacked
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.oci import tar
from tests.making import make_deb, member, read_back


def deb(folder: Path, name: str, *members: tuple[tarfile.TarInfo, bytes], postinst: str = "") -> StoredDeb:
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\n"
    path = make_deb(folder / f"{name}.deb", control, members, postinst=postinst)
    return StoredDeb(name, "1", hashlib.sha256(path.read_bytes()).hexdigest(), path)


def rehashed(package: StoredDeb) -> StoredDeb:
    """The package after its file was changed by whoever made it."""
    return replace(package, sha256=hashlib.sha256(package.path.read_bytes()).hexdigest())


def test_top_folders_are_merged_into_usr(tmp_path: Path) -> None:
    package = deb(
        tmp_path,
        "tool",
        (member("./", tarfile.DIRTYPE, mode=0o755), b""),
        (member("./bin/", tarfile.DIRTYPE, mode=0o755), b""),
        (member("./bin/tool", mode=0o4755), b"#!"),
        (member("./lib/x86_64-linux-gnu/libtool.so.1"), b"elf"),
        (member("./usr/bin/tool-link", tarfile.SYMTYPE, link="tool"), b""),
    )
    members = read_back(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=True).entries())
    assert members["usr/bin/tool"].mode == 0o755, "set-id bits are dropped"
    assert members["usr/lib/x86_64-linux-gnu/libtool.so.1"].data == b"elf"
    assert members["usr/bin/tool-link"].target == "tool"
    assert {name: members[name].target for name in ("bin", "lib", "sbin", "lib64")} == {
        "bin": "usr/bin",
        "lib": "usr/lib",
        "sbin": "usr/sbin",
        "lib64": "usr/lib64",
    }
    assert members["tmp"].mode == 0o1777


def test_over_a_base_no_link_of_the_base_is_replaced(tmp_path: Path) -> None:
    package = deb(tmp_path, "tool", (member("./lib/", tarfile.DIRTYPE, mode=0o755), b""), (member("./lib/a"), b"1"))
    members = read_back(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=False).entries())
    assert "lib" not in members
    assert "etc/passwd" not in members
    assert members["usr/lib/a"].data == b"1"


def test_what_maintainer_scripts_make_is_there_as_data(tmp_path: Path) -> None:
    packages = [
        deb(
            tmp_path,
            "base-passwd",
            (member("./usr/share/base-passwd/passwd.master"), b"root:*:0:0:root:/root:/bin/bash\n"),
            (member("./usr/share/base-passwd/group.master"), b"root:*:0:\n"),
        ),
        deb(tmp_path, "dash", (member("./bin/dash", mode=0o755), b"elf")),
        deb(
            tmp_path,
            "ca-certificates",
            (member("./usr/share/ca-certificates/mozilla/B.crt"), b"B\n"),
            (member("./usr/share/ca-certificates/mozilla/A.crt"), b"A"),
        ),
    ]
    members = read_back(deb_layer("system", "all", packages, store=Store(tmp_path / "s"), is_root=True).entries())
    passwd = members["etc/passwd"].data.decode()
    assert passwd.startswith("root:*:0:0:")
    assert "cpack:x:1000:1000:" in passwd
    assert members["usr/bin/sh"].target == "dash"
    assert members["etc/ssl/certs/ca-certificates.crt"].data == b"A\nB\n"
    assert b"Package: dash" in members["var/lib/dpkg/status.d/dash"].data


def test_alternatives_are_linked_as_the_scripts_say_without_running_them(tmp_path: Path) -> None:
    script = """#!/bin/sh
set -e
if [ "$1" = configure ]; then
    update-alternatives --quiet --install /usr/bin/pager pager /bin/less 77 \\
        --slave /usr/share/man/man1/pager.1.gz pager.1.gz /usr/share/man/man1/less.1.gz \\
        --slave /usr/share/man/man1/gone.1.gz gone.1.gz /usr/share/man/man1/gone.1.gz || true
    update-alternatives --install /usr/bin/gone gone /usr/bin/not-there 5
    update-alternatives --install "$BINPATH" computed /bin/less 5; rm -rf /
    update-alternatives --install /usr/bin/../../x out /bin/less 5
    update-alternatives --install /usr/bin/x ../../x /bin/less 5
    update-alternatives --install /usr/bin/y "unended /bin/less 5
    update-alternatives --remove editor /bin/less
fi
"""
    less = deb(tmp_path, "less", (member("./bin/less", mode=0o755), b"less"),
               (member("./usr/share/man/man1/less.1.gz"), b"man"), postinst=script)  # fmt: skip
    more = deb(tmp_path, "more", (member("./bin/more", mode=0o755), b"more"),
               postinst="update-alternatives --install /usr/bin/pager pager /bin/more 50")  # fmt: skip
    for packages in ([less, more], [more, less]):
        members = read_back(deb_layer("system", "all", packages, store=Store(tmp_path / "s"), is_root=True).entries())
        assert members["usr/bin/pager"].target == "/etc/alternatives/pager"
        assert members["etc/alternatives/pager"].target == "/usr/bin/less"
        assert members["etc/alternatives/pager.1.gz"].target == "/usr/share/man/man1/less.1.gz"
        alternatives = {name for name in members if name.startswith("etc/alternatives/")}
        assert alternatives == {"etc/alternatives/pager", "etc/alternatives/pager.1.gz"}


def test_a_file_of_a_package_is_never_replaced_by_an_alternative(tmp_path: Path) -> None:
    package = deb(tmp_path, "tool", (member("./usr/bin/tool", mode=0o755), b"tool"),
                  postinst="update-alternatives --install /bin/tool tool /usr/bin/tool 1\n")  # fmt: skip
    members = read_back(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=True).entries())
    assert members["usr/bin/tool"].data == b"tool"


def test_a_package_with_a_device_is_refused_by_name(tmp_path: Path) -> None:
    package = deb(tmp_path, "evil", (member("./dev/sda", tarfile.BLKTYPE), b""))
    with pytest.raises(UnsafeInput, match=r"evil 1 holds \./dev/sda"):
        list(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=True).entries())


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "./usr/../../x"])
def test_a_package_whose_names_leave_the_root_is_refused(tmp_path: Path, name: str) -> None:
    package = deb(tmp_path, "evil", (member(name), b""))
    with pytest.raises(UnsafeInput):
        list(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=True).entries())


def test_a_broken_package_is_refused_by_name(tmp_path: Path) -> None:
    package = deb(tmp_path, "broken", (member("./usr/x"), b"x" * 5000))
    package.path.write_bytes(package.path.read_bytes()[:400])
    package = rehashed(package)
    with pytest.raises(BadInput, match="broken 1"):
        list(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=True).entries())


def test_a_package_by_another_name_is_another_layer(tmp_path: Path) -> None:
    """The name is a file's in the layer; with one key for both, the one built first would be taken for the other."""
    package = deb(tmp_path, "tool", (member("./usr/bin/tool"), b"elf"))
    other = StoredDeb("renamed", package.version, package.sha256, package.path)
    one, two = (deb_layer("system", "all", [it], store=Store(tmp_path / "s"), is_root=True) for it in (package, other))
    assert read_back(one.entries()).keys() != read_back(two.entries()).keys()
    assert one.key != two.key


LAYER_DIGEST = """
import hashlib, sys
from pathlib import Path
from cpack_build.fetch.store import Store
from cpack_build.image import unpacked
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.oci import tar
path = Path(sys.argv[1])
package = StoredDeb("ca", "1", hashlib.sha256(path.read_bytes()).hexdigest(), path)
layer = deb_layer("system", "all", [package], store=Store(Path(sys.argv[2])), is_root=True)
print(hashlib.sha256(b"".join(tar.stream(layer.entries()))).hexdigest())
"""


def test_a_name_that_is_not_ascii_means_the_same_in_every_locale(tmp_path: Path) -> None:
    """ca-certificates has such names; tarfile by itself reads them as the locale says."""
    path = "./usr/share/ca-certificates/mozilla/F\u0151tan\u00fas\u00edtv\u00e1ny.crt"
    package = deb(tmp_path, "ca", (member(path), b"A\n"))
    layer = deb_layer("system", "all", [package], store=Store(tmp_path / "here"), is_root=True)
    expected = hashlib.sha256(b"".join(tar.stream(layer.entries()))).hexdigest()
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, **ascii_only, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LAYER_DIGEST, str(package.path), str(tmp_path / "there")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == expected


@pytest.mark.parametrize("control", [b"no tar at all" * 100, b""])
def test_a_package_without_readable_control_files_is_refused_by_name(tmp_path: Path, control: bytes) -> None:
    package = deb(tmp_path, "odd", (member("./usr/a"), b"x"))
    name = b"control.tar.xz  "
    data = package.path.read_bytes()
    start = data.index(name)
    size = int(data[start + 48 : start + 58])
    head = data[start : start + 48] + b"%-10d" % len(control) + data[start + 58 : start + 60]
    rest = data[start + 60 + size + size % 2 :]
    package.path.write_bytes(data[:start] + head + control + b"\n" * (len(control) % 2) + rest)
    package = rehashed(package)
    with pytest.raises(BadInput, match="odd 1"):
        read_back(deb_layer("system", "all", [package], store=Store(tmp_path / "s"), is_root=True).entries())


def test_a_package_that_would_fill_the_disk_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "RATIO_FREE", 1 << 20)
    package = deb(tmp_path, "bomb", (member("./usr/zeros"), bytes(3 << 20)))
    assert package.path.stat().st_size * unpacked.RATIO_LIMIT < 2 << 20
    store = Store(tmp_path / "s")
    with pytest.raises(BadInput, match=r"bomb 1.*decompresses to more"):
        list(deb_layer("system", "all", [package], store=store, is_root=True).entries())
    assert [path for path in store.root.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20] == []
