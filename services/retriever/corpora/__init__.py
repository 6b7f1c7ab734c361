"""Corpora: reads rows of the known layouts, and stores passages for lookup by row number and by id."""
