"""Tests that every module states in its first lines what it provides."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "searchrl" / "contracts"
MODULES = sorted(
    path.relative_to(ROOT)
    for folder in ("searchrl", "services", "deploy", "scripts", "docker", "tools", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if GENERATED not in path.parents
)


def complaint(source: str, is_package_mark: bool = False) -> str | None:
    """What is wrong with a module's docstring; None: nothing. A package's ``__init__.py`` may go without one."""
    docstring = ast.get_docstring(ast.parse(source))
    if not docstring:
        return None if is_package_mark else "has no docstring"
    first_line = docstring.splitlines()[0]
    return f"asks instead of stating: {first_line}" if "?" in first_line else None


def test_every_module_states_what_it_provides() -> None:
    complaints = {
        str(module): found
        for module in MODULES
        if (found := complaint((ROOT / module).read_text(), module.name == "__init__.py"))
    }

    assert len(MODULES) > 500, "the modules were not found"
    assert not complaints


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Rank fusion."""', None),
        ('"""Rank fusion.\n\nA later line may quote: who?\n"""', None),
        ('"""How are rankings fused?"""', "asks instead of stating: How are rankings fused?"),
        ("x = 1", "has no docstring"),
    ],
)
def test_missing_and_questioning_docstrings_are_refused(source: str, expected: str | None) -> None:
    assert complaint(source) == expected
    assert complaint("x = 1", is_package_mark=True) is None
