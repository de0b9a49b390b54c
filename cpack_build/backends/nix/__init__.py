"""Nix as a backend: the lock as derivations, whose layers are made by this program's own functions, so the image is the
embedded one to the byte. :mod:`.folder` writes what Nix reads, :mod:`.derive` is what a derivation runs,
:mod:`.program` calls Nix, :mod:`.result` reads what it made, and :mod:`.backend` puts them together."""
