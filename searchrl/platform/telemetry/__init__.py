"""Logs, metrics and traces, in the same form for every service."""
