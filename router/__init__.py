"""The way in: gateway, directory, placement, waking."""
