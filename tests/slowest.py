"""Which tests the fast tier leaves out: ``pytest --durations=0 --durations-min=0.05 | python tests/slowest.py``.

`make slow-list` measures anew and writes `tests/slow.txt`. A test is listed if it takes longer than LIMIT
seconds and is neither KEPT, nor the cheapest of its function (of its law, for `test_law`) and below ALONE. A
listed test has the mark `slow`; tests may also carry it in the code, where cost is not the reason or is known.
"""

import collections
import re
import sys

LIMIT, ALONE = 0.3, 2.0
# What the fast tier keeps at any cost: the pages and notebooks, the transcriptions, and what the README promises.
KEPT = ("test_readme", "test_training_page", "test_notebooks", "test_adding_a_rule", "test_moving_pages")
KEPT += (
    "test_oracles",
    "_takes_at_most_",
    "_keeps_at_most_",
    "test_a_notebook_cell_run_again",
    "test_train_prints_a_line",
)


def slowest(lines, limit=LIMIT):
    """The ids of the tests to leave out, sorted, from pytest's list of durations."""
    seconds = collections.defaultdict(float)
    for line in lines:
        found = re.match(r"([\d.]+)s (?:call|setup|teardown) +(.+)$", line.rstrip())
        if found:
            seconds[found[2]] += float(found[1])
    alike = collections.defaultdict(list)
    for name in seconds:
        function, _, case = name.partition("[")
        law = case.rstrip("]").rpartition("-")[2] if function.endswith("::test_law") else ""
        alike[function, law].append(name)
    dear = []
    for (function, _), names in alike.items():
        if any(kept in function for kept in KEPT):
            continue
        cheapest = min(names, key=seconds.__getitem__)
        dear += [n for n in names if seconds[n] > limit and (n != cheapest or seconds[n] > ALONE)]
    return sorted(dear)


if __name__ == "__main__":
    print("\n".join(slowest(sys.stdin)))
