"""Indexes: each turns a batch of queries into ranked row numbers of its corpus and reads its own files.

Also the life of index generations: building, storing, checking and swapping them.
"""
