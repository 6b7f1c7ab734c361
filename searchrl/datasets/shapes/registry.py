"""Lists every row shape, the most specific first, because the first that matches a row reads it.

A new shape is one file and one line here.
"""

from searchrl.datasets.shapes.ambiguous import AmbiguousShape
from searchrl.datasets.shapes.base import RowShape
from searchrl.datasets.shapes.beir import BeirShape
from searchrl.datasets.shapes.keyed import KeyedShape
from searchrl.datasets.shapes.medmcqa import MedMcqaShape
from searchrl.datasets.shapes.search_r1 import SearchR1Shape
from searchrl.datasets.shapes.squad import SquadShape

ROW_SHAPES: tuple[RowShape, ...] = (
    SearchR1Shape(), SquadShape(), AmbiguousShape(), MedMcqaShape(), BeirShape(), KeyedShape(),
)  # fmt: skip

READ_KEYS = frozenset[str]().union(*(shape.keys for shape in ROW_SHAPES))
"""Canonical names of all columns that any shape reads."""
