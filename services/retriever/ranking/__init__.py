"""Ranking: putting several rankings of the same query together."""
