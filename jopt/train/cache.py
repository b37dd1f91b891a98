"""Compiled code that outlives the call that needed it."""

import collections
import types
from collections.abc import Callable
from typing import Any

MOST_PROGRAMS = 16

_RECENT: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def cached(function: Any, key: Any, build: Callable[[], Any]) -> Any:
    """What `build` makes, once for each key.

    What belongs to a plain function lives on that function, so that it ends with it and with the data it may
    close over; what belongs to an adapter, which compares by configuration, lives in a bounded cache.
    """
    cache: Any = _RECENT
    if isinstance(function, types.FunctionType):
        cache = function.__dict__.setdefault("_jopt_programs", collections.OrderedDict())
    if key not in cache:
        cache[key] = build()
        while len(cache) > MOST_PROGRAMS:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
