"""Checks what a run will need before it starts: inputs, machine and services; ``--dry-run`` prints them."""
