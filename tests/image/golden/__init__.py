"""The image format's promise, held: two small images and one layer of each kind, whose digests are in ``golden.json``.

``inputs/`` is everything that they are made from, kept as files so that no other program's bytes come into it: wheels,
.debs, an archive with an interpreter, a model; ``cpack.lock`` pins them. The git trees are made on the spot, with fixed
dates. Nothing is fetched.

* :mod:`.inputs` made the files (``python -m tests.image.golden inputs`` makes them again, which is hardly ever wanted);
* :mod:`.building` builds the images from them;
* ``python -m tests.image.golden record`` writes what they are now to ``golden.json``: after a byte rule was changed
  before it was released, with the rule in ``docs/image-format.md``. A released revision is never recorded again.
* ``python -m tests.image.golden build FOLDER STORE`` prints the digests, for ``test_matrix``.
"""
