"""The load harness; run from a checkout."""
