"""The page on training keeps its word: its snippets run in order, its links lead somewhere."""

import re
from pathlib import Path

import jax
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_snippets_run_in_order(capsys):
    assert len(BLOCKS) >= 5
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # a reader's JAX is not strict
        for number, block in enumerate(BLOCKS, 1):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)
    assert "eval accuracy" in capsys.readouterr().out


def test_its_links_lead_somewhere():
    for page in re.findall(r"\]\(([\w./]+)\)", PAGE.read_text()):
        assert (PAGE.parent / page).exists(), page
