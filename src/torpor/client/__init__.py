"""The Python client, async and blocking."""
