"""Checkpoints on disk: written atomically, verified by checksum, found again after any crash."""
