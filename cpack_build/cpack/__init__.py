"""The ``.cpack.zip`` format: schema, reader, writer; and ``cpack.yaml``, which a person writes beside or inside it."""
