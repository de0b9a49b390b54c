"""From a lock to an image: layers as recipes, the config, the manifest.

A layer is a *recipe* (:mod:`.layer`): a key, and a function that yields tar entries in order. The kinds of layer are
siblings, one module each: :mod:`.debs`, :mod:`.wheels`, :mod:`.trees`, :mod:`.app` (links and config); models have
the universal layer of :mod:`cpack_build.oci.modellayer`. :mod:`.build` walks the lock from bottom to top and puts
them together; :mod:`.config` writes the two JSON documents. Nothing here reads the clock, the user, the locale, the
umask or a directory's order."""
