"""The list of what the fast tier leaves out names tests that exist, and is made by its rule."""

import re
from pathlib import Path

from conftest import SLOW
from slowest import slowest

ROOT = Path(__file__).parent.parent


def test_what_is_listed_exists():
    functions = {name.partition("[")[0] for name in SLOW}
    assert len(functions) > 50
    for function in functions:
        file, _, name = function.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), (
            f"{function} is listed in tests/slow.txt and not there: run make slow-list"
        )


def test_the_cheapest_case_and_what_is_kept_stay():
    lines = [
        "3.00s call     tests/test_a.py::test_one[x-1]",
        "0.90s call     tests/test_a.py::test_one[y]",
        "0.50s setup    tests/test_a.py::test_two",
        "0.40s call     tests/test_a.py::test_two",
        "9.00s call     tests/test_a.py::test_three",
        "9.00s call     tests/test_readme.py::test_readme_snippets_run",
        "2.00s call     tests/test_laws.py::test_law[adam-scan_is_a_loop]",
        "1.00s call     tests/test_laws.py::test_law[soap-scan_is_a_loop]",
        "2.00s call     tests/test_laws.py::test_law[adam-steps_are_pure]",
        "= 8 passed in 30s =",
    ]
    assert slowest(lines, limit=0.8) == [
        "tests/test_a.py::test_one[x-1]",
        "tests/test_a.py::test_three",
        "tests/test_laws.py::test_law[adam-scan_is_a_loop]",
    ]
