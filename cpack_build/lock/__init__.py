"""Resolving a pack to a lock: base image, system packages, interpreter, wheels, git trees, models."""
