"""Tests of the ComfyUI plugin: its nodes, its door, its routes and, in a real browser, its side of the frontend."""
