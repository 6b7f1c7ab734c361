"""The multi-turn search loop and what it needs: ports, protocols, limits. Standard library only; no network, no torch."""
