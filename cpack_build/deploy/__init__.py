"""Where an image goes when one machine is not enough: :mod:`~cpack_build.deploy.bento` makes a Bento of it, and
:mod:`~cpack_build.deploy.bentocloud` has BentoCloud run that; :mod:`~cpack_build.deploy.kubernetes` and
:mod:`~cpack_build.deploy.compose` write what their engines run it by."""
