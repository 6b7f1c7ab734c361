"""Batching: queries of different requests wait in one queue and are ranked together by one thread."""
