"""The service in the image: BentoML in front, ComfyUI as a child process behind, HTTP and WebSocket between them.

``python -m cpack_build.serve`` is the image's entrypoint (:mod:`~cpack_build.serve.__main__`). It reads its
:mod:`~cpack_build.serve.settings`, prepares the :mod:`~cpack_build.serve.folders`, decides the
:mod:`~cpack_build.serve.device`, starts :mod:`~cpack_build.serve.comfyui`, and serves
:mod:`~cpack_build.serve.service`: a request's :mod:`~cpack_build.serve.parameters` become a prompt that the
:mod:`~cpack_build.serve.client` has run, its files going in and out by :mod:`~cpack_build.serve.exchange` and back to
the caller by :mod:`~cpack_build.serve.answer`. Before BentoML stands the :mod:`~cpack_build.serve.front` with the
limits and our own :mod:`~cpack_build.serve.routes`: :mod:`~cpack_build.serve.streaming`,
:mod:`~cpack_build.serve.tasks`, and the page. Only these two rooms of the package are in an image: ``workflow`` and
this.
"""
