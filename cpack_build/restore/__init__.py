"""Image or pack to workspace, image to pack. Empty for now."""
