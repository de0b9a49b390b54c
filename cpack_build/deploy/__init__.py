"""Bento, BentoCloud, Kubernetes, Compose. Empty for now."""
