"""Observing a ComfyUI install (commit, nodes, packages, models, inputs) and laying one out. Empty for now."""
