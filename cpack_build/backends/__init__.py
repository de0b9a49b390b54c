"""Who executes a plan. The embedded builder is ``image.build``; BuildKit and Nix will stand here beside it. Empty for now."""
