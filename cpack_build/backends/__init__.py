"""Who executes a plan: BuildKit and Nix will stand beside the embedded builder, ``image.build``. Empty for now."""
