"""``python -m cpack_build``: the same as the ``cpack-build`` command."""

from cpack_build.cli import main

if __name__ == "__main__":
    main()
