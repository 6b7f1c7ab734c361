"""Caching: rankings remembered in the process and in Redis, and equal queries in flight asked once."""
