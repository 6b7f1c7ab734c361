"""Where results live: one SQLite file that survives a killed process and is never written by two."""
