"""Ranking: fuses several rankings of the same query."""
