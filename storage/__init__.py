"""Records, commit scripts, blobs, workspace snapshots and checkpoint envelopes."""
