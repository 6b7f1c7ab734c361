"""Typed clients of the four services, and implementations of the search loop's ports over the network."""
