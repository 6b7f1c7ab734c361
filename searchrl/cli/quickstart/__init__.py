"""The quickstart: a small world from its corpus to the report."""
