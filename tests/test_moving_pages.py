"""The pages for those who come from elsewhere: snippets run in order, links lead somewhere, names exist."""

import re
from pathlib import Path

import jax
import pytest

import jopt

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("from_optax.md", "from_torch.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_run_in_order(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # a reader's JAX is not strict
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([\w./]+)\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_the_names_in_its_tables_exist(page):
    """In the column of jopt, whatever is called is there."""
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("| "):
            ours = line.replace("\\|", "").split("|")[2]
            for name in re.findall(r"`(?:schedules\.)?(\w+)\(", ours):
                assert hasattr(jopt, name) or hasattr(jopt.schedules, name), name
