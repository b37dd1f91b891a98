"""Every Python snippet of the README runs, in order, in one namespace; its commands exist."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent


def test_readme_snippets_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 6
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # a reader's JAX is not strict
        for block in blocks:
            exec(compile(block, "README.md", "exec"), namespace)
    assert "matrices" in capsys.readouterr().out


def test_readme_names_real_targets_and_commands():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for page in re.findall(r"\]\((docs/[\w.]+)\)", readme):
        assert (ROOT / page).exists(), page
