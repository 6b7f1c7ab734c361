"""Serving: the queue and batches of concurrent queries, the caches of rankings, and the index in service."""
