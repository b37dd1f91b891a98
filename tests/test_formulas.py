"""Every block of docs/formulas.md runs, and gives the formula it stands for."""

import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt import schedules

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "formulas.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
STEPS = 40
UPDATES, SCHEDULES, DEVIATIONS = {}, {}, {}
FALL = schedules.exponential_decay(0.1, 10, 0.5)


def named_blocks():
    """The blocks by their names; the first is the setup that all share."""
    named = {}
    for block in BLOCKS[1:]:
        name = re.match(r"# formula: (\S+)\n", block)
        assert name, f"a block without '# formula: name': {block}"
        assert name[1] not in named, f"two blocks are named {name[1]}"
        named[name[1]] = block
    return named


def run_block(name, **numbers):
    """What the block defines, after the setup with some of its numbers replaced."""
    space = {"__name__": "formulas"}
    exec(BLOCKS[0], space)
    exec(named_blocks()[name], space | numbers | {"out": space}) if False else None
    space |= numbers
    exec(named_blocks()[name], space)
    return types.SimpleNamespace(**space)


def updates(name):
    """Register the transcription of a formula: a generator of the parameters after each step.

    It gets the gradient as a function of a point and the step from 0, the start, and the page's
    numbers; k.gamma is a function of the step.
    """
    return lambda function: UPDATES.setdefault(name, function)


def schedule(name):
    """Register the transcription of a schedule: its value at step n."""
    return lambda function: SCHEDULES.setdefault(name, function)
