"""The one list of optimizers, rules and wrappers that the laws run over; an unlisted public one fails.

A module is a family. It may define

    OPTIMIZERS, RULES, WRAPPERS    {name: Entry}: what the laws run over
    ORACLES                        [Replay]: replays against the transcriptions in `oracles`
    SYMBOLS                        {rule: {slot: symbols of the oracle}}: every slot is compared
    RANDOM                         {name: why it has no transcription}
    OPTAX                          [Against]: replays against optax
    UNCOMPARED                     {name: why no replay against optax, which has the name too}
    EXCEPTIONS                     {name: how its signature departs from optax's}
"""

from zoo import averages, blocks, classic, matrix, moments, preconditioners, search, storage, tuned

FAMILIES = (classic, moments, blocks, matrix, preconditioners, tuned, averages, storage, search)


def _joined(what):
    found = {}
    for family in FAMILIES:
        for name, value in getattr(family, what, {}).items():
            assert name not in found, f"{what}: {name} is listed twice"
            found[name] = value
    return found


OPTIMIZERS, RULES, WRAPPERS = map(_joined, ("OPTIMIZERS", "RULES", "WRAPPERS"))
SYMBOLS, RANDOM, UNCOMPARED, EXCEPTIONS = map(_joined, ("SYMBOLS", "RANDOM", "UNCOMPARED", "EXCEPTIONS"))
EVERYTHING = OPTIMIZERS | RULES | WRAPPERS
ORACLES = [case for family in FAMILIES for case in getattr(family, "ORACLES", [])]
OPTAX = [case for family in FAMILIES for case in getattr(family, "OPTAX", [])]
