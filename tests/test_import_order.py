"""The package is read from top to bottom: modules import only those above them in the table of CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table() -> list[str]:
    rows = re.findall(r"^ *\| (`\w+\.py`[^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)\.py`", row)]


def imported(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {name.name for name in node.names}
    return found


def test_modules_import_only_those_above_them():
    order = table()
    modules = {path.stem: path for path in (ROOT / "modeling_elmo").glob("*.py") if path.stem != "__init__"}
    assert sorted(order) == sorted(modules)
    assert order[0] == "configuration_elmo"  # which names files for remote code to take along, and imports none
    for place, name in [*enumerate(order)][1:]:
        assert not imported(modules[name]) - {*order[:place]}, name
