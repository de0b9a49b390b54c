"""The places that ``cpack-build deploy`` knows, one module each, imported only when that place is meant."""
