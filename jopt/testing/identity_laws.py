"""Laws of configuration: a transform is its numbers and functions, and nothing else."""

import pickle

import jopt
from jopt.testing.law import law
from jopt.testing.subject import Subject
from jopt.transform import make_transform


@law
def equal_by_configuration(subject: Subject) -> None:
    """Made again from the same parts, or pickled and back, it is equal and hashes alike; another is not equal."""
    again = {"made of its parts": make_transform(subject.tx.parts)}
    if subject.factory is not None:
        one, other = subject.numbers
        again["made again"] = subject.factory(one)
        if subject.factory(one) == subject.factory(other):
            raise AssertionError(f"made from {one} and from {other} it is equal, two transforms were expected.")
        if subject.factory(one) != subject.factory(one):
            raise AssertionError(f"made twice from {one} it is not equal, equal transforms were expected.")
        again["made again"] = subject.tx
    if subject.plain:
        again["unpickled"] = pickle.loads(pickle.dumps(subject.tx))
    for how, tx in again.items():
        if tx != subject.tx or hash(tx) != hash(subject.tx):
            raise AssertionError(f"{how} it is {tx!r}, which is not equal to (or hashes unlike) {subject.tx!r}.")
    if not subject.plain and _pickles(subject.tx):
        raise AssertionError("it pickles, and plain=False is declared. Declare plain=True.")


@law
def repr_is_the_call(subject: Subject) -> None:
    """`repr` is an expression that makes an equal transform."""
    names = vars(jopt.schedules) | vars(jopt) | dict(subject.namespace)
    if not subject.plain:
        try:
            equal = eval(repr(subject.tx), dict(names)) == subject.tx
        except Exception:
            return
        if equal:
            raise AssertionError("its repr makes it again, and plain=False is declared. Declare plain=True.")
        return
    made = eval(repr(subject.tx), dict(names))
    if made != subject.tx:
        raise AssertionError(f"repr gave {subject.tx!r}, which makes {made!r}: an equal transform was expected.")


def _pickles(tx: object) -> bool:
    try:
        return pickle.loads(pickle.dumps(tx)) == tx
    except Exception:
        return False
