"""References exist, entries are complete, and every public factory says what it does."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest

import jopt
from jopt import schedules

ROOT = pathlib.Path(__file__).parents[1]
KEY = r"\[([a-z]+\d{4}[a-z0-9]*)\]"


def entries():
    """{key: {field: text}} of docs/papers.bib; two of one key are an error."""
    found = {}
    for kind, key, body in re.findall(r"^@(\w+)\{(\S+),\n(.*?)^\}", BIB, re.MULTILINE | re.DOTALL):
        assert key not in found, f"two entries of the key {key}"
        fields = re.findall(r"^ +(\w+) *= \{(.*?)\},?$(?=\n +\w+ *=|\n*\Z)", body, re.MULTILINE | re.DOTALL)
        found[key] = {name: " ".join(text.split()) for name, text in fields} | {"kind": kind}
    return found


BIB = (ROOT / "docs" / "papers.bib").read_text()
ENTRIES = entries()


def docstrings():
    """(where, docstring) of every module, class and function in jopt."""
    for path in sorted((ROOT / "jopt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", ast.get_docstring(node)


def cited():
    """{key: the places that name it} over docstrings and pages."""
    places = {}
    texts = [*docstrings(), *((p.name, p.read_text()) for p in (ROOT / "docs").glob("*.md"))]
    for where, text in texts:
        for key in re.findall(KEY, text):
            places.setdefault(key, []).append(where)
    return places


def test_every_key_named_has_an_entry():
    missing = {key: places for key, places in cited().items() if key not in ENTRIES}
    assert not missing


def test_every_reference_line_names_a_key():
    for where, text in docstrings():
        for line in re.findall(r"^ *Reference: (.*)", text, re.MULTILINE):
            assert re.match(KEY, line), f"{where}: {line!r} does not start with a key"


def test_every_entry_is_named_somewhere():
    assert not ENTRIES.keys() - cited().keys()


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_is_complete_and_its_key_is_author_year_word(key):
    entry = ENTRIES[key]
    assert entry.keys() >= {"title", "author", "year"}
    assert re.fullmatch(r"\d{4}", entry["year"])
    assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.get("eprint", "0000.00000"))
    assert ("eprint" in entry) == (entry.get("archiveprefix") == "arXiv")
    place = {"article": "journal", "inproceedings": "booktitle"}.get(entry["kind"])
    assert place is None or place in entry
    assert place or "eprint" in entry or "howpublished" in entry
    surname = re.sub(r"[^a-z]", "", re.sub(r"\\.|[{}]", "", entry["author"].split(",")[0]).lower())
    assert key.startswith(surname + entry["year"])


def test_no_entry_is_lost_to_the_parser():
    assert len(ENTRIES) == len(re.findall(r"^@", BIB, re.MULTILINE))
    for key, entry in ENTRIES.items():
        body = BIB[BIB.index("{" + key + ",") :].split("\n}")[0]
        assert len(entry) - 1 == len(re.findall(r"^ +\w+ *= \{", body, re.MULTILINE)), key


def factories():
    """(name, object) of every public function or class of the modules that make transforms and schedules."""
    for module in ("jopt.optimizers", "jopt.rules", "jopt.schedules"):
        owner = importlib.import_module(module)
        yield from ((f"{module}.{name}", getattr(owner, name)) for name in owner.__all__)
    for name, value in vars(jopt).items():
        if getattr(value, "__module__", "").startswith(("jopt.clip", "jopt.regularize", "jopt.plateau", "jopt.wrap")):
            yield f"jopt.{name}", value


@pytest.mark.parametrize(("name", "value"), list(factories()), ids=lambda x: x if isinstance(x, str) else "")
def test_a_factory_has_a_first_sentence_and_explains_its_numbers(name, value):
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    first = text.split("\n\n")[0]
    assert first.endswith(".")
    assert first[0].isupper()
    assert len(first) <= 240
    if "Args:" in text:
        taken = inspect.signature(value).parameters
        section = text.split("Args:")[1].split("\n\n")[0]
        # "b1, b2: ..." explains both; "**kwargs" is written with its stars.
        named = re.findall(r"^    (\**\w+(?:, \**\w+)*):", section, re.MULTILINE)
        explained = {one.strip("* ") for group in named for one in group.split(",")}
        assert explained <= taken.keys(), f"{name} explains arguments it does not take"
        if not name.startswith("jopt.optimizers"):  # shared arguments are explained in the module's docstring
            assert taken.keys() - explained == set(), f"{name} leaves arguments unexplained"


def test_every_factory_is_covered():
    names = {name.rsplit(".", 1)[1] for name, _ in factories()}
    assert {"adam", "scale_by_adam", "clip", "add_noise", "accumulate", "reduce_on_plateau"} <= names
    assert set(schedules.__all__) <= names
