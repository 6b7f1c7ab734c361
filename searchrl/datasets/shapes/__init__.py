"""The shapes of rows in common use: each recognizes its rows and finds question and answers in them.

A new shape is a class and a line in ``ROW_SHAPES``.
"""

from searchrl.datasets.shapes.base import RowShape
from searchrl.datasets.shapes.beir import BeirShape
from searchrl.datasets.shapes.keyed import AmbiguousShape, KeyedShape, MedMcqaShape, SquadShape
from searchrl.datasets.shapes.search_r1 import SearchR1Shape

ROW_SHAPES: tuple[RowShape, ...] = (
    SearchR1Shape(), SquadShape(), AmbiguousShape(), MedMcqaShape(), BeirShape(), KeyedShape(),
)  # fmt: skip
"""Every row shape, the most specific first, because the first that matches a row reads it."""

READ_KEYS = frozenset[str]().union(*(shape.keys for shape in ROW_SHAPES))
"""Canonical names of all columns that any shape reads."""
