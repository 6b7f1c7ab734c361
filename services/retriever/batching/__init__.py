"""Batching: queries of different requests meet in one queue and are ranked together by one thread."""
