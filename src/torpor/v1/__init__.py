"""Generated from proto/torpor/v1."""
