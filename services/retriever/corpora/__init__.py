"""Corpora: reading rows of the known layouts, and storing passages for lookup by row number and by id."""
