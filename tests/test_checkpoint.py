"""`jopt.save` and `jopt.load`: what goes in comes back bit for bit, or an error names every difference."""

import dataclasses
import os
from collections import OrderedDict, namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jopt
from jopt.train.checkpoint import CheckpointError, load, read_meta, save
from jopt.train.checkpoint.leaves import DTYPES, FLOAT0, dtype_named

X64 = ("int64", "uint64", "float64", "complex128")
NUMPY_ONLY = (FLOAT0, "int1", "uint1", "float6_e2m3fn", "float6_e3m2fn")
Pair = namedtuple("Pair", "first second")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    weight: object
    value: object


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.jopt"


def bits(x):
    """What must not change: type, dtype, shape and bytes of a leaf."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return "key", str(x.dtype), bits(jax.random.key_data(x))
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        sort = jax.Array if isinstance(x, jax.Array) else type(x)
        array = np.asarray(x)
        return sort, array.dtype.newbyteorder("="), array.shape, np.ascontiguousarray(array).tobytes()
    return type(x), repr(x)


def assert_same(a, b):
    a, structure = jax.tree.flatten(a, is_leaf=lambda x: x is None)
    b, other = jax.tree.flatten(b, is_leaf=lambda x: x is None)
    assert structure == other
    assert [bits(x) for x in a] == [bits(x) for x in b]


def values(name, shape=(2, 3)):
    """An array of a dtype; its bytes are arbitrary where any byte makes a value."""
    dtype = dtype_named(name)
    if name == FLOAT0:
        return np.zeros(shape, dtype)
    if dtype.itemsize == 1 and dtype.kind != "b" and "float" in name and name.startswith("float8"):
        return np.arange(256, dtype=np.uint8).view(dtype)
    if name == "bool" or "int" in name:
        rows = np.arange(np.prod(shape)).reshape(shape) % 2
        return rows.astype(np.int8).astype(dtype)
    rng = np.random.default_rng(0)
    parts = rng.standard_normal(shape), rng.standard_normal(shape)
    return (parts[0] + 1j * parts[1]).astype(dtype) if dtype.kind == "c" else parts[0].astype(np.float32).astype(dtype)


# Round trips -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_numpy_arrays_of_every_dtype_come_back(path, name):
    tree = {"a": values(name), "scalar": values(name).reshape(-1)[:1].reshape(()), "none": values(name)[:0]}
    save(path, tree)
    assert_same(load(path, tree), tree)
    assert_same(load(path), tree)


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in (*X64, *NUMPY_ONLY)])
def test_jax_arrays_of_every_dtype_come_back(path, name):
    tree = {"a": jnp.array(values(name)), "none": jnp.array(values(name)[:0])}
    save(path, tree)
    assert_same(load(path, tree), tree)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert_same(load(path, structs), tree)


@pytest.mark.parametrize("name", X64)
def test_wide_jax_arrays_come_back_under_x64(path, name, x64):
    tree = {"a": jnp.array(values(name))}
    assert tree["a"].dtype == name
    save(path, tree)
    assert_same(load(path, tree), tree)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_come_back(path, implementation):
    key = jax.random.key(7, impl=implementation)
    tree = {"one": key, "many": jax.random.split(key, (2, 3)), "raw": jax.random.PRNGKey(0)}
    save(path, tree)
    assert_same(load(path, tree), tree)
    assert_same(load(path)["many"], tree["many"])
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    drawn = jax.random.normal(load(path, structs)["one"], (4,))
    np.testing.assert_array_equal(drawn, jax.random.normal(key, (4,)))


def test_gradients_of_integers_come_back(path):
    def loss(p):
        return p["w"] ** 2 + 0.0 * p["n"].astype(jnp.float32)

    grads = jax.grad(loss, allow_int=True)({"w": jnp.float32(3), "n": jnp.int32(1)})
    save(path, grads)
    loaded = load(path, grads)
    assert loaded["n"].dtype == grads["n"].dtype == jax.dtypes.float0
    assert_same(loaded["w"], grads["w"])


NUMBERS = [True, 0, -3, 2**100, 1.5, -0.0, float("nan"), float("-inf"), 1 + 2j, complex("nan+infj")]


def test_python_numbers_stay_python_numbers(path):
    tree = dict(enumerate(NUMBERS))
    save(path, tree)
    assert_same(load(path, tree), tree)
    assert_same(load(path), tree)


def test_every_container_comes_back(path):
    a = np.arange(3)
    tree = {
        "dict": {"b": a, "a": a + 1},
        "ordered": OrderedDict(z=a, y=a + 2),
        "integers": {10: a, 2: a + 3},
        "list": [a, None, [a + 4]],
        "tuple": (a, (a + 5,)),
        "named": Pair(a, Pair(a + 6, None)),
        "dataclass": Model(a, {"value": a + 7}),
        "empty": ({}, [], (), Pair({}, None), np.zeros((0, 3)), optax.EmptyState()),
    }
    save(path, tree)
    assert_same(load(path, tree), tree)
    plain = load(path)
    assert list(plain["integers"]) == [2, 10]
    assert plain["named"].keys() == {"first", "second"}
    assert plain["dataclass"].keys() == {"weight", "value"}
    assert plain["list"][1] is None
    assert type(plain["tuple"]) is tuple
    assert plain["empty"][:3] == ({}, [], ())
    assert_same(plain["empty"][4], np.zeros((0, 3)))


@pytest.mark.parametrize("tree", [{}, [], (), 2.5, np.ones(2), {"a": {}}], ids=str)
def test_trees_without_arrays_and_bare_leaves_come_back(path, tree):
    save(path, tree)
    assert_same(load(path), tree)
    assert_same(load(path, tree), tree)


def test_numpy_scalars_come_back(path):
    save(path, np.float32(2))
    assert_same(load(path, np.float32(0)), np.float32(2))
    assert_same(load(path), np.array(2, np.float32))
    save(path, None)
    assert load(path) is None


def test_a_list_of_twelve_layers_keeps_its_order(path):
    layers = [jnp.full((2,), i) for i in range(12)]
    save(path, {"layers": layers})
    assert [int(x[0]) for x in load(path)["layers"]] == list(range(12))
    assert_same(load(path, {"layers": [jnp.zeros_like(x) for x in layers]})["layers"], layers)
    assert_same(load(path, {"layers": tuple(layers)}), {"layers": tuple(layers)})


def test_layouts_of_memory_do_not_matter(path):
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    tree = {"fortran": np.asfortranarray(a), "strided": a[::2, ::3], "reversed": a[::-1], "big": a.astype(">f4")}
    save(path, tree)
    loaded = load(path)
    for name, x in tree.items():
        np.testing.assert_array_equal(loaded[name], x)
        assert loaded[name].dtype == np.float32


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.builds(
        lambda shape, name: np.asarray(values(name, shape)),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.sampled_from([name for name in DTYPES if not name.startswith("float8")]),
    ),
)
names = st.one_of(st.text(st.characters(), max_size=8), st.sampled_from(["../x", "a/b", "~1", "$float", "\x00"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=3),
        st.dictionaries(st.integers(-5, 20), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(tree=trees, meta=trees.filter(lambda t: not any(hasattr(x, "dtype") for x in jax.tree.leaves(t))))
def test_any_tree_comes_back(tmp_path_factory, tree, meta):
    path = tmp_path_factory.mktemp("any") / "a.jopt"
    meta = {"$dict": [meta]} if _has_strings_only(meta) else None
    save(path, tree, meta=meta)
    if tree is not None:
        assert_same(load(path, tree), tree)
    assert_same({"a": load(path)}, {"a": tree})
    assert repr(read_meta(path)) == repr(meta)


def _has_strings_only(tree):
    if isinstance(tree, dict):
        return all(isinstance(key, str) for key in tree) and all(map(_has_strings_only, tree.values()))
    return all(map(_has_strings_only, tree)) if isinstance(tree, list | tuple) else True


# Where the leaves go -----------------------------------------------------------------------------


def mesh(n):
    return Mesh(np.array(jax.devices()[:n]), ("x",))


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 4), (2, 8)])
def test_arrays_are_placed_as_like_is(path, before, after):
    a = jnp.arange(32.0).reshape(8, 4)
    keys = jax.random.split(jax.random.key(0), 8)
    old, new = (NamedSharding(mesh(n), PartitionSpec("x")) for n in (before, after))
    save(path, jax.device_put({"a": a, "keys": keys}, old))
    like = jax.device_put({"a": jnp.zeros_like(a), "keys": keys}, new)
    loaded = load(path, like)
    assert loaded["a"].sharding == new
    assert loaded["keys"].sharding == new
    assert_same(loaded["a"], a)
    assert_same(loaded["keys"], keys)
    struct = {"a": jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=new), "keys": keys}
    assert load(path, struct)["a"].sharding == new


def test_arrays_are_committed_as_like_is(path):
    a, device = jnp.arange(3.0), jax.devices()[3]
    save(path, {"free": a, "bound": a})
    loaded = load(path, {"free": a, "bound": jax.device_put(a, device)})
    assert not loaded["free"].committed
    assert loaded["bound"].committed
    assert loaded["bound"].devices() == {device}


def test_saving_leaves_no_copy_on_the_host(path):
    a = jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh(8), PartitionSpec("x")))
    save(path, {"a": a})
    assert a._npy_value is None
    np.asarray(a)
    assert a._npy_value is not None, "the attribute this test looks at is gone"


def test_a_loaded_tree_can_be_donated(path):
    tree = {"a": jnp.arange(1024.0)}
    save(path, tree)
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1.0, t), donate_argnums=0)
    loaded = load(path, tree)
    out = step(step(loaded))
    np.testing.assert_array_equal(out["a"], np.arange(1024.0) + 2)
    assert loaded["a"].is_deleted()


def test_a_resumed_state_does_not_retrace(path):
    tx, params = jopt.adamw(1e-3), {"w": jnp.ones(3)}
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    state = step(params, tx.init(params), params)[1]
    save(path, state)
    before = step._cache_size()
    step(params, load(path, state), params)
    assert step._cache_size() == before


# Mutations ---------------------------------------------------------------------------------------


def saved_tree():
    a = jnp.arange(6.0).reshape(2, 3)
    tx = jopt.adamw(1e-3)
    return {
        "layers": [{"kernel": a + i, "bias": jnp.ones(3)} for i in range(12)],
        "embed": jnp.ones((4, 2), jnp.bfloat16),
        "step": jnp.int32(7),
        "key": jax.random.key(1),
        "opt": tx.init({"w": a}),
        "rate": 0.5,
        "n": 3,
        "flag": True,
        "none": None,
        "ids": {1: a, 2: a},
        "pair": (a, a),
        "named": Pair(a, a),
        "mask": jnp.array([True, False]),
        "wide": np.arange(3) + 2**40,
        "empty": np.zeros((0, 3), np.float32),
        "a/b": a,
        "scope": {"c": a},
    }


def put(name, value):
    return lambda tree: {**tree, name: value(tree[name]) if callable(value) else value}


def drop(name):
    return lambda tree: {key: value for key, value in tree.items() if key != name}


def cast(dtype):
    return lambda x: x.astype(dtype)


def layer(i, **changes):
    return put("layers", lambda layers: [{**x, **changes} if j == i else x for j, x in enumerate(layers)])


def optimizer(make):
    return put("opt", lambda _: make.init({"w": jnp.zeros((2, 3))}))


# How `like` differs from what was saved, and what the message must name.
MUTATIONS = {
    "a leaf is gone": (drop("embed"), "embed"),
    "a leaf is new": (lambda t: {**t, "head": jnp.ones(2)}, "head"),
    "a leaf is renamed": (lambda t: drop("embed")({**t, "embedding": t["embed"]}), "embedding"),
    "a layer is gone": (put("layers", lambda x: x[:-1]), "layers/11/kernel"),
    "a layer is new": (put("layers", lambda x: [*x, x[0]]), "layers/12/kernel"),
    "a layer has one array more": (layer(5, scale=jnp.ones(3)), "layers/5/scale"),
    "a list has become a dict": (put("layers", lambda x: dict(enumerate(x))), "layers/0/kernel"),
    "a list has become a dict of strings": (put("layers", lambda x: {str(i): y for i, y in enumerate(x)}), "layers/0"),
    "all is one level deeper": (lambda t: {"params": t}, "params/embed"),
    "transposed": (layer(3, kernel=jnp.zeros((3, 2))), "layers/3/kernel"),
    "one axis more": (layer(3, kernel=jnp.zeros((1, 2, 3))), "layers/3/kernel"),
    "one axis less": (layer(3, kernel=jnp.zeros(6)), "layers/3/kernel"),
    "broadcastable": (layer(3, bias=jnp.zeros((1,))), "layers/3/bias"),
    "longer": (layer(3, bias=jnp.zeros((4,))), "layers/3/bias"),
    "shorter": (layer(3, bias=jnp.zeros((2,))), "layers/3/bias"),
    "a scalar has become an array": (put("step", lambda x: x[None]), "step"),
    "float32 to bfloat16": (layer(3, bias=jnp.zeros(3, jnp.bfloat16)), "layers/3/bias"),
    "float32 to float16": (layer(3, bias=jnp.zeros(3, jnp.float16)), "layers/3/bias"),
    "float32 to int32": (layer(3, bias=jnp.zeros(3, jnp.int32)), "layers/3/bias"),
    "float32 to complex64": (layer(3, bias=jnp.zeros(3, jnp.complex64)), "layers/3/bias"),
    "bfloat16 to float32": (put("embed", cast(jnp.float32)), "embed"),
    "bfloat16 to float16": (put("embed", cast(jnp.float16)), "embed"),
    "int32 to float32": (put("step", cast(jnp.float32)), "step"),
    "int32 to uint32": (put("step", cast(jnp.uint32)), "step"),
    "int32 to int8": (put("step", cast(jnp.int8)), "step"),
    "bool to int8": (put("mask", cast(jnp.int8)), "mask"),
    "int64 to int32 without x64": (put("wide", lambda x: jnp.zeros(3, jnp.int32)), "x64"),
    "a shape of another dtype": (put("embed", jax.ShapeDtypeStruct((4, 2), jnp.float32)), "embed"),
    "a shape of another shape": (put("embed", jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)), "embed"),
    "a key of another implementation": (put("key", lambda x: jax.random.key(1, impl="rbg")), "key<rbg>"),
    "a key has become its words": (put("key", jax.random.key_data), "uint32[2]"),
    "a key has become several": (put("key", lambda x: jax.random.split(x, 2)), "key<fry>[2]"),
    "None has become an array": (put("none", jnp.ones(2)), "none: None"),
    "an array has become None": (put("embed", None), "embed"),
    "a Python float has become an int": (put("rate", 1), "rate: Python float"),
    "a Python int has become a bool": (put("n", True), "n: Python int"),
    "a Python bool has become an int": (put("flag", 1), "flag: Python bool"),
    "a Python float has become an array": (put("rate", lambda x: jnp.float32(x)), "rate"),
    "an array has become a Python int": (put("step", 7), "step"),
    "integer keys have become strings": (put("ids", lambda x: {str(k): v for k, v in x.items()}), "ids/1"),
    "integer keys have become a list": (put("ids", lambda x: [None, *x.values()]), "ids/1"),
    "a tuple has become a dict": (put("pair", lambda x: dict(enumerate(x))), "pair/0"),
    "a tuple is longer": (put("pair", lambda x: (*x, x[0])), "pair/2"),
    "a NamedTuple has become a dict": (put("named", lambda x: x._asdict()), "named/first"),
    "a NamedTuple has become a tuple": (put("named", tuple), "named/0"),
    "an empty array has another shape": (put("empty", np.zeros((0, 4), np.float32)), "empty"),
    "a slash in a key has become a level": (lambda t: drop("a/b")({**t, "a": {"b": t["a/b"]}}), "a~1b"),
    "a level has become a slash in a key": (lambda t: drop("scope")({**t, "scope/c": t["scope"]["c"]}), "scope~1c"),
    "the state of another optimizer": (optimizer(jopt.sgd(1e-3, momentum=0.9)), "opt/slots/scale_by_adam/mu/w"),
    "the state of a longer chain": (optimizer(jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(1e-3))), "max_norm"),
    "the state of other parameters": (put("opt", jopt.adamw(1e-3).init({"v": jnp.zeros((2, 3))})), "mu/v"),
    "a batch of states": (put("opt", lambda s: jax.tree.map(lambda x: jnp.stack([x, x]), s)), "opt/count"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_tree_that_differs_never_loads_silently(path, name):
    mutate, named = MUTATIONS[name]
    tree = saved_tree()
    save(path, tree)
    with pytest.raises(CheckpointError) as caught:
        load(path, mutate(tree))
    assert named in str(caught.value)


def test_the_table_of_mutations_is_as_long_as_promised():
    assert len(MUTATIONS) >= 40


def test_one_report_lists_all_differences(path):
    save(path, {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(4), "d": 1})
    with pytest.raises(CheckpointError) as caught:
        load(path, {"a": jnp.ones(2), "b": jnp.ones(5), "c": jnp.ones(4, jnp.int32), "e": jnp.ones(6)})
    text = str(caught.value)
    assert "missing in the file:\n    e  float32[6]" in text
    assert "left over in the file:\n    d  Python int" in text
    assert "b: float32[3] in the file, float32[5] in like" in text
    assert "c: float32[4] in the file, int32[4] in like" in text
    assert "migrate=" in text


@pytest.mark.parametrize("name", X64)
def test_wide_arrays_need_x64_and_the_error_says_so(path, name):
    wide = values(name)
    save(path, {"a": wide})
    narrow = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}[name]
    for like in (jnp.zeros((2, 3), narrow), jax.ShapeDtypeStruct((2, 3), wide.dtype)):
        with pytest.raises(CheckpointError, match="jax_enable_x64"):
            load(path, {"a": like})
    assert_same(load(path, {"a": np.zeros_like(wide)}), {"a": wide})


def test_an_array_made_under_x64_is_not_loaded_without(path, x64):
    wide = {"a": jnp.arange(3) + 2**40}
    save(path, wide)
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(CheckpointError, match="jax_enable_x64"):
        load(path, wide)


# Part of a file, renamed leaves ------------------------------------------------------------------


def test_partial_takes_what_both_sides_have(path):
    save(path, {"a": jnp.ones(2), "old": jnp.ones(3)})
    like = {"a": jnp.zeros(2), "new": jnp.full(3, 5.0)}
    loaded = load(path, like, partial=True)
    assert_same(loaded, {"a": jnp.ones(2), "new": like["new"]})
    with pytest.raises(CheckpointError, match="a: float32"):
        load(path, {"a": jnp.zeros(2, jnp.int32)}, partial=True)
    with pytest.raises(CheckpointError, match="new: it would keep"):
        load(path, {"a": jnp.zeros(2), "new": jax.ShapeDtypeStruct((3,), jnp.float32)}, partial=True)


def test_partial_takes_the_leaves_of_a_glob_and_all_of_them(path):
    save(path, {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(10)}})
    like = {"body": {"w": jnp.zeros(2)}, "head": {"w": jnp.zeros(3)}}
    for chooser in ("body/*", ~jopt.path("head"), lambda leaf: leaf.shape == (2,)):
        loaded = load(path, like, partial=chooser)
        assert_same(loaded, {"body": {"w": jnp.ones(2)}, "head": like["head"]})
    with pytest.raises(CheckpointError, match="head/w"):
        load(path, like, partial="**/w")
    with pytest.raises(CheckpointError, match="body/v"):
        load(path, {"body": {"w": jnp.zeros(2), "v": jnp.zeros(1)}}, partial="body/*")
    with pytest.raises(CheckpointError, match="chooses no leaf"):
        load(path, like, partial="bodies/*")


def test_migrate_renames_levels_rules_and_by_function(path):
    params = {"enc": {"w": jnp.ones(2)}, "encoder": jnp.ones(3)}
    state = jopt.chain(jopt.scale_by_adam(), jopt.scale(-1.0)).init({"w": jnp.ones(2)})
    save(path, {"params": params, "opt": state})
    renamed = jax.tree.map(lambda x: x, state)
    for field in (renamed.slots, renamed.hyper, renamed.base):
        for name in [name for name in field if name.startswith("scale_by_adam")]:
            field[name.replace("scale_by_adam", "my_adam")] = field.pop(name)
    like = {"params": {"body": {"w": jnp.zeros(2)}, "encoder": jnp.zeros(3)}, "opt": renamed}
    loaded = load(path, like, migrate={"params/enc": "params/body", "scale_by_adam": "my_adam"})
    assert_same(loaded["params"], {"body": params["enc"], "encoder": params["encoder"]})
    assert_same(loaded["opt"], renamed)
    by_function = load(
        path, like, migrate=lambda p: p.replace("scale_by_adam", "my_adam").replace("params/enc/", "params/body/")
    )
    assert_same(by_function, loaded)
    with pytest.raises(CheckpointError, match="one path"):
        load(path, like, migrate=lambda p: "a")


def test_migrate_can_swap_two_names(path):
    save(path, {"a": jnp.ones(2), "b": jnp.zeros(2)})
    loaded = load(path, {"a": jnp.ones(2), "b": jnp.ones(2)}, migrate={"a": "b", "b": "a"})
    assert_same(loaded, {"a": jnp.zeros(2), "b": jnp.ones(2)})


def test_what_needs_like_is_refused_without_it(path):
    save(path, {"a": 1})
    for name, value in {"partial": True, "migrate": {"a": "b"}, "hyperparams": "state", "tx": jopt.sgd(0.1)}.items():
        with pytest.raises(TypeError, match=name):
            load(path, **{name: value})
    with pytest.raises(ValueError, match="hyperparams='mine'"):
        load(path, {"a": 1}, hyperparams="mine")


# What a checkpoint cannot hold -------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf",
    ["text", b"bytes", object(), np.array(["a"]), np.array([None]), np.zeros(2, [("a", "f4")]), np.longdouble(1)],
    ids=lambda x: type(x).__name__,
)
def test_a_leaf_of_another_type_is_named(path, leaf):
    with pytest.raises(CheckpointError, match="params/x"):
        save(path, {"params": {"x": leaf}})
    assert not path.exists()
    assert os.listdir(path.parent) == []


def test_trees_without_definite_paths_are_refused(path):
    for tree in ({1: 0, "1": 0}, {(1, 2): 0}, {True: 0}, {None: 0}, {1.5: 0}):
        with pytest.raises(CheckpointError):
            save(path, {"ids": tree})
    deep = 0
    for _ in range(300):
        deep = [deep]
    with pytest.raises(CheckpointError, match="deeper"):
        save(path, deep)


def test_traced_donated_and_abstract_leaves_are_named(path):
    with pytest.raises(CheckpointError, match="'w' is only known inside a trace"):
        jax.jit(lambda x: save(path, {"w": x}))(jnp.ones(2))
    a = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(a)
    with pytest.raises(CheckpointError, match="'w' has been donated"):
        save(path, {"w": a})
    with pytest.raises(CheckpointError, match="'w' is a shape"):
        save(path, {"w": jax.ShapeDtypeStruct((2,), jnp.float32)})


# Meta --------------------------------------------------------------------------------------------


def test_meta_comes_back_with_infinities_tuples_and_awkward_keys(path):
    inf, nan = float("inf"), float("nan")
    meta = {
        "history": [{"step": i, "loss": x} for i, x in enumerate([0.1, nan, inf, -inf, -0.0])],
        "tuple": (1, (2.0, None), "é\ud800"),
        "$float": "nan",
        "nested": {"$dict": {"$tuple": []}},
        "scalars": [np.float32(0.25), jnp.int32(3), np.bool_(True)],
    }
    save(path, {}, meta=meta)
    loaded = read_meta(path)
    assert loaded.pop("scalars") == [0.25, 3, True]
    meta.pop("scalars")
    assert repr(loaded) == repr(meta)


def test_meta_defaults_to_none(path):
    save(path, {})
    assert read_meta(path) is None


@pytest.mark.parametrize("meta", [{"a": [{1, 2}]}, {"a": [{3: 4}]}, {"a": [np.ones(2)]}, {"a": [10**9000]}])
def test_meta_that_json_cannot_hold_is_named(path, meta):
    with pytest.raises(CheckpointError, match=r"meta\['a'\]\[0\]"):
        save(path, {}, meta=meta)
    assert not path.exists()


def test_meta_inside_itself_is_refused(path):
    meta = []
    meta.append(meta)
    with pytest.raises(CheckpointError, match="in itself"):
        save(path, {}, meta=meta)


# Names of files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ünï 中文.jopt", "a" * 250 + ".jopt", "no ending", ".hidden", "a\nb"])
def test_any_file_name_works(tmp_path, name):
    save(tmp_path / name, {"a": 1})
    save(str(tmp_path / name), {"a": 2})
    assert load(tmp_path / name) == {"a": 2}
    assert os.listdir(tmp_path) == [name]


def test_hostile_keys_make_no_file(tmp_path):
    tree = {"../x": np.ones(2), "/etc/passwd": np.ones(3), "a" * 5000: np.ones(1), "\x00": np.ones(1), "": np.ones(4)}
    save(tmp_path / "inner.jopt", tree)
    assert_same(load(tmp_path / "inner.jopt"), tree)
    assert os.listdir(tmp_path) == ["inner.jopt"]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "missing.jopt")
    with pytest.raises(CheckpointError, match="directory"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "missing" / "a.jopt", {})
    with pytest.raises(OSError, match="directory"):
        save(tmp_path, {})
    assert os.listdir(tmp_path) == []
