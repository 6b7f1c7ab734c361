"""The result store: one SQLite file that survives a killed process and is written by one process at a time."""
