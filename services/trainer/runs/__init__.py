"""Keeps a run's folder, lock and state, and records each of its steps."""
