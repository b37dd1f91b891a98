"""The page on writing an optimizer keeps its word: its code runs, and is as short as it says."""

import ast
import re
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("flax")

PAGE = Path(__file__).parent.parent / "docs" / "adding_a_rule.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def notebook():
    """A module of its own for the page's code, so that its functions can be pickled like any others."""
    module = types.ModuleType("adding_a_rule")
    sys.modules[module.__name__] = module
    yield module.__dict__
    del sys.modules[module.__name__]


def test_the_code_on_the_page_runs_from_top_to_bottom(notebook, capsys):
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), notebook)
    shown = capsys.readouterr().out
    assert "beta=1.5 was given, a number in [0, 1) was expected" in shown
    assert "scale_by_softsign(beta=0.9, delta=0.001) → scale_by_learning_rate(learning_rate=0.05)" in shown
    # A rule that needs no exception is checked by every law that says something about it.
    assert set(re.findall(r"^(\w+) was not checked", shown, re.MULTILINE)) <= {
        "non_matrices_are_refused",
        "extras_are_asked_for",
        "explicit_mesh_is_one_device",
        "auto_mesh_is_one_device",
    }


def test_an_optimizer_takes_fifteen_lines():
    functions = [node for node in ast.parse(BLOCKS[0]).body if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions] == ["softsign_slots", "softsign_step", "scale_by_softsign", "softsign"]
    assert sum(f.end_lineno - f.lineno + 1 for f in functions) <= 15


def test_the_page_names_files_and_names_that_exist():
    root = PAGE.parent.parent
    text = PAGE.read_text()
    for name in re.findall(r"`((?:jopt|tests|docs)/[\w/.]+)`", text):
        assert (root / name).exists(), name
    import jopt

    for name in re.findall(r"^\| `\"\w+\"` .* \| `(\w+)` \|$", text, re.MULTILINE):
        assert hasattr(jopt, name), name
