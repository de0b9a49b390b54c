"""The ComfyUI plugin's interface nodes and server routes. Empty for now."""
