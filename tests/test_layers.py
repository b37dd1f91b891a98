"""Layers of the library: a module imports from its own layer and those below, and nothing in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import jopt

ROOT = Path(jopt.__file__).parent

LAYERS = (
    ("scalars", "paths", "dtypes", "lapack", "linalg", "polar", "axes", "control", "formats"),
    ("rule", "state", "chunks", "calls", "stacks", "kernel", "engine", "update", "transform"),
    ("schedules", "clip", "regularize", "plateau", "privacy", "rules"),
    ("partition", "wrap", "storage"),
    ("optimizers", "apply", "explain", "migrate", "moved"),
    ("data",),
    ("train", "models", "testing", "solvers"),
    ("cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MODULES = {
    ".".join(("jopt", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node):
    """The modules of jopt that a module imports, also inside functions, but not for types alone."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name.split(".")[0] == "jopt")
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import: {ast.unparse(child)}"
            if child.module.split(".")[0] == "jopt":
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield full if full in MODULES else child.module
        yield from imports(child)


IMPORTS = {name: set(imports(ast.parse(path.read_text()))) - {name} for name, path in MODULES.items()}


def part_of(module):
    """The layer entry a module belongs to: `jopt.rules.adam` to rules, `jopt.cli_train` to cli."""
    part = module.split(".")[1]
    return "cli" if part.startswith("cli_") else part


def level_of(module):
    # `import jopt` itself is all but the models and the command line; what is above may use it whole.
    return LEVEL["train"] if module == "jopt" else LEVEL[part_of(module)]


def test_every_module_has_a_layer():
    parts = {part_of(name) for name in MODULES if name != "jopt"}
    assert parts - LEVEL.keys() == set(), "enter new modules in LAYERS"
    assert LEVEL.keys() - parts == set(), "LAYERS names modules that are gone"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "jopt"])
def test_a_module_imports_from_its_layer_and_those_below(module):
    above = {name for name in IMPORTS[module] if level_of(name) > level_of(module)}
    assert above == set()


def test_no_two_modules_import_each_other_in_a_circle():
    # That a package runs before its modules is Python's own order, and no import.
    graphlib.TopologicalSorter(IMPORTS).prepare()


# The parts that rules and wrappers are written in: they see flat dictionaries and single arrays.
FLAT = ("rules", "storage", "clip", "regularize", "plateau", "schedules", "optimizers", "partition", "wrap")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "jopt" and part_of(name) in FLAT])
def test_no_rule_knows_trees(module):
    source = MODULES[module].read_text()
    assert "tree.map" not in source
    assert "tree_map" not in source


@pytest.mark.parametrize("name", MODULES)
def test_files_are_short_and_named_by_what_they_hold(name):
    assert len(MODULES[name].read_text().splitlines()) <= 500
    assert name.rpartition(".")[2] not in ("utils", "misc", "common", "helpers", "base")
