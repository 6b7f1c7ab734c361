"""The multi-turn search loop and its ports, protocols and limits. Standard library only; no network, no torch."""
