"""The file of a checkpoint: readable by other tools, and no change of any byte of it goes unnoticed."""

import ast
import copy
import hashlib
import io
import json
import random
import resource
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt.train.checkpoint import Checkpointer, CheckpointError, archive, load, read_meta, save, strict_json
from jopt.train.checkpoint.errors import DamagedCheckpointError

MEGABYTE = 1 << 20


def tree_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((5, 7)).astype(np.float32),
        "layers": [{"b": rng.standard_normal(3)}, {"b": np.arange(4)}],
        "half": rng.standard_normal(8).astype(jnp.bfloat16),
        "mask": rng.standard_normal(5) > 0,
        "step": seed,
        "none": None,
        "empty": {},
    }


def same(a, b):
    a, structure = jax.tree.flatten(a)
    b, other = jax.tree.flatten(b)
    return structure == other and all(
        type(x) is type(y)
        and np.asarray(x).dtype == np.asarray(y).dtype
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(a, b, strict=True)
    )


def file_of(tmp_path, seed=1, **kwargs):
    save(tmp_path / "made.jopt", tree_of(seed), **kwargs)
    return (tmp_path / "made.jopt").read_bytes()


# Readable in ten years ---------------------------------------------------------------------------


def test_zip_tools_and_numpy_can_read_it(tmp_path):
    file_of(tmp_path, meta={"note": "hello"})
    with zipfile.ZipFile(tmp_path / "made.jopt") as opened:
        assert opened.testzip() is None
        manifest = json.loads(opened.read("manifest.json"))
        assert manifest["format"] == 1
        assert manifest["meta"] == {"note": "hello"}
        assert manifest["versions"]["jopt"] == jopt.__version__
        (leaf,) = [leaf for leaf in manifest["leaves"] if leaf["path"] == ["w"]]
        data = opened.read(f"{leaf['blob']:06d}.raw")
        assert hashlib.sha256(data).hexdigest() == manifest["blobs"][leaf["blob"]][2]
        np.testing.assert_array_equal(np.frombuffer(data, leaf["dtype"]).reshape(leaf["shape"]), tree_of(1)["w"])
        assert all(info.compress_type == zipfile.ZIP_STORED for info in opened.infolist())


def test_typed_paths_are_written_plainly(tmp_path):
    state = jopt.sgd(0.1).init({"w": jnp.ones(2)})
    save(tmp_path / "a.jopt", {"opt": state, "layers": [np.ones(1)], "ids": {3: np.ones(1)}, "pair": (np.ones(1),)})
    manifest = json.loads(zipfile.ZipFile(tmp_path / "a.jopt").read("manifest.json"))
    paths = [leaf["path"] for leaf in manifest["leaves"]]
    assert ["opt", ["attribute", "count"]] in paths
    assert ["layers", ["list", 0]] in paths
    assert ["ids", 3] in paths
    assert ["pair", ["tuple", 0]] in paths


def test_equal_trees_make_equal_files(tmp_path):
    assert file_of(tmp_path) == file_of(tmp_path)


def test_more_entries_than_old_zip_can_count(tmp_path):
    many = {i: np.zeros(0, np.int8) for i in range(70_000)}
    members = [archive.Member(f"{i:06d}.raw", i, 0, 0) for i in many]
    ending = archive._ending(members, "0" * 64)
    # What zipfile needs to list them: the directory is where the file says.
    padded = io.BytesIO(b"\0" * members[-1].end + ending)
    assert len(zipfile.ZipFile(padded).infolist()) == 70_000


# Damage ------------------------------------------------------------------------------------------


def flipped(rng, data):
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(rng, data):
    return data[: rng.randrange(len(data))]


def overwritten(rng, data):
    start, size = rng.randrange(len(data)), rng.choice([1, 16, 512, 4096])
    run = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])
    return data[:start] + run[: len(data) - start] + data[start + size :]


FAULTS = {"flipped": (flipped, 20), "truncated": (truncated, 5), "overwritten": (overwritten, 5)}
"""3000 faults in all, the hundredth part of them in each of these."""


def inject(tmp_path, kind, trials):
    """Damage the newest of two checkpoints; each time it loads bit-equal, or the older one does."""
    damage, _ = FAULTS[kind]
    rng = random.Random(kind)
    directory = tmp_path / "run"
    with Checkpointer(directory).open() as session:
        for step in (1, 2):
            assert session.save(step, tree_of(step), {"step": step})
        newest = directory / "step_000000002.jopt"
        data = newest.read_bytes()
        fallen_back = 0
        for _ in range(trials):
            broken = damage(rng, data)
            newest.write_bytes(broken)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                restored = session.latest(tree_of(0))
            assert same(restored.tree, tree_of(restored.step))
            assert restored.meta == {"step": restored.step}
            aside = directory / "step_000000002.jopt.corrupt"
            if broken == data:
                assert (restored.step, caught) == (2, [])
                continue
            assert restored.step == 1
            assert len(caught) == 1
            assert "step_000000002.jopt.corrupt" in str(caught[0].message)
            assert aside.read_bytes() == broken
            assert not newest.exists()
            aside.unlink()
            fallen_back += 1
        return fallen_back


@pytest.mark.parametrize("kind", FAULTS)
def test_a_damaged_file_is_noticed_and_the_one_before_is_used(tmp_path, kind):
    trials = 10 * FAULTS[kind][1]
    assert inject(tmp_path, kind, trials) >= 0.8 * trials


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_three_thousand_faults_are_noticed(tmp_path, kind):
    trials = 100 * FAULTS[kind][1]
    assert inject(tmp_path, kind, trials) >= 0.8 * trials


@pytest.mark.slow
def test_no_single_bit_of_a_file_is_unguarded(tmp_path):
    save(tmp_path / "a.jopt", {"w": np.arange(3, dtype=np.float32)}, meta="m")
    data = (tmp_path / "a.jopt").read_bytes()
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        (tmp_path / "b.jopt").write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            load(tmp_path / "b.jopt")


FOREIGN = {
    "empty": lambda data, other: b"",
    "appended": lambda data, other: data + b"x",
    "appended zeros": lambda data, other: data + bytes(4096),
    "prepended": lambda data, other: b"x" + data,
    "twice": lambda data, other: data + data,
    "two files": lambda data, other: data + other,
    "the first half of another": lambda data, other: other[: len(data) // 2] + data[len(data) // 2 :],
    "zeros": lambda data, other: bytes(len(data)),
    "no ZIP": lambda data, other: b"PK\x03\x04" + random.Random(0).randbytes(1000),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_swapped_repeated_and_foreign_bytes_are_noticed(tmp_path, name):
    (tmp_path / "b.jopt").write_bytes(FOREIGN[name](file_of(tmp_path, 1), file_of(tmp_path, 2)))
    with pytest.raises(DamagedCheckpointError):
        load(tmp_path / "b.jopt")


def test_only_the_leaves_wanted_are_read(tmp_path):
    """So that a part can be rescued from a file that is damaged elsewhere."""
    save(tmp_path / "a.jopt", {"a": np.arange(100), "b": np.arange(100) + 1})
    data = bytearray((tmp_path / "a.jopt").read_bytes())
    data[data.index(np.arange(100).tobytes()) + 9] ^= 1
    (tmp_path / "a.jopt").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"000000\.raw"):
        load(tmp_path / "a.jopt")
    like = {"b": np.zeros(100, np.int64)}
    np.testing.assert_array_equal(load(tmp_path / "a.jopt", like, partial=True)["b"], np.arange(100) + 1)


# Hostile files -----------------------------------------------------------------------------------


def rebuilt(manifest, blobs):
    """A file with sound headers and digests around any manifest, so that its content is reached."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    members, out = [], io.BytesIO()
    for i, blob in enumerate([*blobs, text]):
        name = f"{i:06d}.raw" if i < len(blobs) else archive.MANIFEST
        members.append(archive.Member(name, out.tell(), len(blob), zlib.crc32(blob)))
        out.write(members[-1].header + blob)
    out.write(archive._ending(members, hashlib.sha256(text).hexdigest()))
    return out.getvalue()


def parts_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        names = opened.namelist()
        return json.loads(opened.read(names[-1])), [opened.read(name) for name in names[:-1]]


def described(blobs):
    return [[len(blob), zlib.crc32(blob), hashlib.sha256(blob).hexdigest()] for blob in blobs]


def around(leaves, data=(), **changes):
    """A file with these leaves and blobs."""
    manifest = {"format": 1, "meta": None, "metrics": None, "leaves": leaves, "empty": [], "blobs": described(data)}
    return rebuilt(manifest | changes, data)


def an_array(**changes):
    return {"path": ["w"], "kind": "array", "dtype": "float32", "shape": [2], "blob": 0} | changes


def a_key(**changes):
    key = {"path": ["k"], "kind": "key", "dtype": "key<fry>", "shape": [], "blob": 0}
    return key | {"implementation": "threefry2x32", "words": [2]} | changes


def test_the_builder_of_hostile_files_builds_sound_ones(tmp_path):
    (tmp_path / "a.jopt").write_bytes(around([an_array()], [np.array([1, 2], np.float32).tobytes()]))
    np.testing.assert_array_equal(load(tmp_path / "a.jopt")["w"], [1, 2])
    (tmp_path / "a.jopt").write_bytes(around([]))
    assert load(tmp_path / "a.jopt") == {}
    (tmp_path / "a.jopt").write_bytes(around([a_key()], [EIGHT]))
    assert load(tmp_path / "a.jopt")["k"].shape == ()


EIGHT = bytes(8)
HOSTILE = {
    "a million open brackets": lambda: rebuilt(b"[" * 10**6, []),
    "a million open objects": lambda: rebuilt(b'{"a":' * 10**6, []),
    "five million lists": lambda: rebuilt(b"[" + b"[]," * (5 * 10**6) + b"0]", []),
    "a million objects": lambda: rebuilt(b"[" + b'{"a":0},' * 10**6 + b"0]", []),
    "a million leaves": lambda: around([0] * 10**6),
    "a million blobs": lambda: around([], blobs=[[0, 0, ""]] * 10**6),
    "a hundred thousand deep paths": lambda: around([], empty=[[[str(i)] + ["a"] * 50, "key"] for i in range(10**5)]),
    "a hundred thousand leaves of nothing": lambda: around([{"kind": "none", "path": [str(i)]} for i in range(10**5)]),
    "a bomb in meta": lambda: rebuilt(
        b'{"format":1,"leaves":[],"empty":[],"blobs":[],"meta":' + b"[[]," * 10**5 + b"0" + b"]" * 10**5 + b"}", []
    ),
    "a number of a million digits": lambda: rebuilt(b'{"format":1,"a":' + b"9" * 10**6 + b"}", []),
    "NaN": lambda: rebuilt(b'{"format":NaN}', []),
    "not ASCII": lambda: rebuilt('{"ü": 1}'.encode(), []),
    "an empty manifest": lambda: rebuilt(b"", []),
    "a list for a manifest": lambda: rebuilt([], []),
    "a manifest without leaves": lambda: rebuilt({"format": 1, "blobs": []}, []),
    "another format": lambda: around([], format=2),
    "a format of text": lambda: around([], format="x" * 10**6),
    "no blob for a leaf": lambda: around([an_array()]),
    "no leaf for a blob": lambda: around([], [EIGHT]),
    "a blob used twice": lambda: around([an_array(), an_array(path=["v"])], [EIGHT]),
    "blobs out of order": lambda: around([an_array(blob=1), an_array(path=["v"])], [EIGHT, EIGHT]),
    "a wrong digest": lambda: around([an_array()], [EIGHT], blobs=[[8, 0, "0" * 64]]),
    "a blob of negative size": lambda: around([an_array()], [EIGHT], blobs=[[-8, 0, "0" * 64]]),
    "a blob of huge size": lambda: around([an_array()], [EIGHT], blobs=[[2**62, 0, "0" * 64]]),
    "a blob past the end": lambda: around([an_array()], [EIGHT], blobs=[[500, 0, "0" * 64]]),
    "a blob of no number": lambda: around([an_array()], [EIGHT], blobs=[[8.5, 0, "0" * 64]]),
    "a negative shape": lambda: around([an_array(shape=[-2])], [EIGHT]),
    "two negative lengths": lambda: around([an_array(shape=[-2, -1])], [EIGHT]),
    "a huge shape": lambda: around([an_array(shape=[2**40])], [EIGHT]),
    "a shape that overflows": lambda: around([an_array(shape=[2**32, 2**32])], [EIGHT]),
    "a shape that overflows to nothing": lambda: around([an_array(shape=[2**64, 0])], [b""]),
    "a huge empty shape": lambda: around([an_array(shape=[2**61, 2**61, 0])], [b""]),
    "a huge float0": lambda: around([an_array(dtype="float0", shape=[2**63])], [b""]),
    "a shape of a thousand axes": lambda: around([an_array(shape=[1] * 1000)], [bytes(4)]),
    "a shape of booleans": lambda: around([an_array(shape=[True, 2])], [EIGHT]),
    "a shape of text": lambda: around([an_array(shape="2")], [EIGHT]),
    "an object dtype": lambda: around([an_array(dtype="object")], [EIGHT]),
    "a dtype that is code": lambda: around([an_array(dtype="__import__('os').abort()")], [EIGHT]),
    "a dtype of text": lambda: around([an_array(dtype="str")], [EIGHT]),
    "a dtype of dates": lambda: around([an_array(dtype="datetime64[s]", shape=[1])], [EIGHT]),
    "booleans that are neither": lambda: around([an_array(dtype="bool", shape=[8])], [b"\x02" * 8]),
    "a kind of leaf there is not": lambda: around([an_array(kind="module")], [EIGHT]),
    "a leaf without path": lambda: around([{"kind": "none"}]),
    "a path of objects": lambda: around([{"kind": "none", "path": [{}]}]),
    "a path without end": lambda: around([{"kind": "none", "path": ["a"] * 10**5}]),
    "a negative index": lambda: around([{"kind": "none", "path": [["list", -1]]}]),
    "a list with gaps": lambda: around([{"kind": "none", "path": [["list", 5]]}]),
    "a list of a billion": lambda: around([{"kind": "none", "path": [["list", 10**9]]}]),
    "two leaves of one path": lambda: around([{"kind": "none", "path": ["a"]}] * 2),
    "a leaf inside a leaf": lambda: around([{"kind": "none", "path": ["a"]}, {"kind": "none", "path": ["a", "b"]}]),
    "a node of two kinds": lambda: around([{"kind": "none", "path": [["list", 0]]}, {"kind": "none", "path": ["b"]}]),
    "an empty container of no kind": lambda: around([], empty=[[[], "set"]]),
    "an empty container wrongly": lambda: around([], empty=[3]),
    "a Python object": lambda: around([{"kind": "python", "path": [], "dtype": "object", "value": 1}]),
    "a Python int of text": lambda: around([{"kind": "python", "path": [], "dtype": "int", "value": "1"}]),
    "a Python bool of a number": lambda: around([{"kind": "python", "path": [], "dtype": "bool", "value": 1}]),
    "an unknown key": lambda: around([a_key(implementation="mine")], [EIGHT]),
    "a key of other words": lambda: around([a_key(words=[1, 2])], [EIGHT]),
    "a key that says another": lambda: around([a_key(dtype="key<rbg>")], [EIGHT]),
    "an unknown $": lambda: around([], meta={"$run": "x"}),
    "a $float of text": lambda: around([], meta={"$float": "1e5"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error_in_little_memory(tmp_path, name):
    data = HOSTILE[name]()
    (tmp_path / "a.jopt").write_bytes(data)
    size = len(data)
    del data
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / "a.jopt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 2 * size + 100 * MEGABYTE
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("leaf", "named"), [(an_array(dtype="float3"), "'float3'"), (a_key(implementation="mine"), "'mine'")]
)
def test_an_unknown_dtype_or_key_is_named_and_is_no_damage(tmp_path, leaf, named):
    (tmp_path / "a.jopt").write_bytes(around([leaf], [EIGHT]))
    with pytest.raises(CheckpointError, match=named) as caught:
        load(tmp_path / "a.jopt")
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_headers_that_zip_tools_would_follow_are_not(tmp_path):
    """Names with folders, overlapping, repeated or compressed members: the bytes must be those we would write."""
    data = file_of(tmp_path)
    manifest, blobs = parts_of(data)
    assert rebuilt(json.dumps(manifest, separators=(",", ":")).encode(), blobs) == data
    for old, new in ((b"000001.raw", b"../../.raw"), (b"000001.raw", b"000000.raw"), (b"PK\x01\x02", b"PK\x01\x03")):
        (tmp_path / "b.jopt").write_bytes(data.replace(old, new))
        with pytest.raises(DamagedCheckpointError):
            load(tmp_path / "b.jopt")
    with zipfile.ZipFile(tmp_path / "c.jopt", "w", zipfile.ZIP_DEFLATED) as out:
        for i, blob in enumerate(blobs):
            out.writestr(f"{i:06d}.raw", blob)
        out.writestr("manifest.json", json.dumps(manifest))
        out.comment = data[-archive.COMMENT_SIZE :]
    with pytest.raises(DamagedCheckpointError):
        load(tmp_path / "c.jopt")


ITEMS = (
    "[]",
    "{}",
    "[0]",
    "[[0]]",
    '{"k%d":1e9}',
    "1e9",
    '"abc"',
    "12345678901",
    "-1",
    '"%d' + "\\ud83d\\ude00" + 50 * "a" + '"',
)


OBJECTS = ["{" + ",".join(f'"{i}-%d":1e9' for i in range(n)) + "}" for n in (2, 6, 11, 22)]


@pytest.mark.parametrize("item", [*ITEMS, *OBJECTS])
def test_the_memory_of_json_is_bounded_before_it_is_parsed(item):
    text = ("[" + ",".join(item.replace("%d", str(i)) for i in range(20_000)) + "]").encode()
    tracemalloc.start()
    try:
        strict_json.load(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= strict_json.memory(text)


def test_large_models_have_room(tmp_path):
    """20 000 small arrays, and the history of a long run."""
    tree = {
        f"layer_{i}": {"kernel": np.zeros(100, np.float32), "bias": np.zeros(10, np.float32)} for i in range(10_000)
    }
    rows = [{"step": 10 * i, "loss": 0.123456789, "accuracy": 0.987654321} for i in range(20_000)]
    save(tmp_path / "a.jopt", tree, meta=rows)
    assert len(load(tmp_path / "a.jopt")) == 10_000


def test_a_large_file_loads_in_little_memory(tmp_path):
    like = {"a": np.zeros((8, MEGABYTE // 4), np.float32), "b": np.ones(MEGABYTE, np.float32)}
    save(tmp_path / "a.jopt", like)
    size = (tmp_path / "a.jopt").stat().st_size
    tracemalloc.start()
    try:
        load(tmp_path / "a.jopt", like)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 1.1 * size


def test_saving_takes_the_memory_of_one_array(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = [jax.device_put(jnp.full((MEGABYTE // 4,), float(i)), sharding) for i in range(8)]
    tracemalloc.start()
    try:
        save(tmp_path / "a.jopt", tree)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 1.5 * MEGABYTE


def test_a_manifest_too_large_to_read_back_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="history"):
        save(tmp_path / "a.jopt", {}, meta=[{"a": 1, "b": 2}] * 300_000)
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "a.jopt", {}, meta=[{"step": i, "loss": 0.25, "accuracy": 0.5} for i in range(60_000)])
    assert len(read_meta(tmp_path / "a.jopt")) == 60_000


# Fuzz --------------------------------------------------------------------------------------------

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 8, 255, 2**31, 2**32, 2**62, 2**63, -(2**63), 10**30, 0.5, 1e308),
    *("", "a", "array", "key", "none", "float64", "bool", "int4", "object", "../x", "list", "x" * 1000, "é"),
    *([], {}, [[]], [0], [-1], [2**62], [1] * 40, ["list", 0], ["tuple", -1], {"$float": "nan"}, {"$x": 1}, {"a": {}}),
)


def mutated_json(rng, value):
    """A copy with one change at one random place."""
    root = [copy.deepcopy(value)]
    places = []
    pending = [(root, 0)]
    while pending:
        parent, key = pending.pop()
        places.append((parent, key))
        node = parent[key]
        inner = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        pending += [(node, k) for k in inner]
    parent, key = rng.choice(places)
    old, (other, where) = parent[key], rng.choice(places)
    match rng.randrange(5):
        case 0 if parent is not root:
            del parent[key]
        case 1 if isinstance(parent, list) and parent is not root:
            parent.insert(key, copy.deepcopy(old))
        case 2 if type(old) is int:
            parent[key] = rng.choice([old + 1, old - 1, -old, old * 2, 2 ** rng.randrange(70)])
        case 3:
            parent[key] = copy.deepcopy(other[where])
        case _:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def mutant(rng, data, parts):
    """A changed file: bytes anywhere, or a manifest or blob changed below sound digests."""
    sort = rng.randrange(6)
    if sort == 0:
        for _ in range(rng.randrange(1, 5)):
            data = flipped(rng, data)
        return data
    if sort == 1:
        return rng.choice([truncated, overwritten])(rng, data) or b"x"
    if sort == 2:
        a, b, c = (rng.randrange(len(data)) for _ in range(3))
        return data[:a] + data[b : b + c] + data[a + rng.randrange(2) * c :]
    manifest, blobs = parts
    if sort == 3:
        blobs = [rng.choice([blob, blob[:-1], blob + b"\0", b"", bytes(len(blob))]) for blob in blobs]
        return rebuilt(manifest | {"blobs": described(blobs)}, blobs)
    for _ in range(rng.randrange(1, 4)):
        manifest = mutated_json(rng, manifest)
    return rebuilt(manifest, blobs)


def fuzz(tmp_path, count, seed):
    """Load mutants: bit-equal values, or a `CheckpointError`, and nothing else. How many were errors."""
    rng = random.Random(seed)
    like = tree_of(5)
    data = file_of(tmp_path, 5, meta={"history": [1.5, None]})
    parts, errors, path = parts_of(data), 0, tmp_path / "mutant.jopt"
    for i in range(count):
        changed = mutant(rng, data, parts)
        path.write_bytes(changed)
        for read in (lambda: load(path, like), lambda: load(path), lambda: read_meta(path)):
            try:
                loaded = read()
            except CheckpointError:
                errors += 1
                continue
            # Without new digests, nothing but the file itself may load.
            assert changed == data or _digests_hold(changed), i
            if isinstance(loaded, dict) and loaded.keys() == like.keys() and changed == data:
                assert same(loaded, like)
    return errors


def _digests_hold(data):
    comment = data[-archive.COMMENT_SIZE :].decode("latin-1")
    found = archive.COMMENT_PATTERN.fullmatch(comment)
    if not found:
        return False
    start, size = int(found[1], 16), int(found[2], 16)
    return hashlib.sha256(data[start : start + size]).hexdigest() == found[3]


def test_mutants_are_errors_or_load(tmp_path):
    assert fuzz(tmp_path, 500, seed=0) > 500


@pytest.mark.slow
def test_ten_thousand_mutants_are_errors_or_load_in_little_memory(tmp_path):
    fuzz(tmp_path, 100, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fuzz(tmp_path, 10_000, seed=2) > 10_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 <= 100 * MEGABYTE


# No code in files --------------------------------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}


def forbidden(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield node.module
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield node.func.id
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield "allow_pickle"


@pytest.mark.parametrize(
    "source", ["import pickle", "from pickle import load", "eval('1')", "exec(x)", "np.load(f, allow_pickle=True)"]
)
def test_the_search_for_code_execution_finds(source):
    assert list(forbidden(source))


def test_nothing_in_jopt_runs_code_from_a_file():
    root = Path(jopt.__file__).parent
    # The law suite pickles and prints what it has just made; it reads no file.
    paths = [path for path in root.rglob("*.py") if path.parent.name != "testing"]
    assert {str(path.relative_to(root)): what for path in paths if (what := list(forbidden(path.read_text())))} == {}


def test_checkpoints_touch_the_file_system_in_one_place():
    """So that tests can stop, fail and tear every operation."""
    root = Path(jopt.__file__).parent / "train" / "checkpoint"
    allowed = {"os.fspath", "os.getpid", "os.urandom"} | {f"os.path.{name}" for name in ("join", "basename")}
    for path in root.glob("*.py"):
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        touching = {name for name in calls if name == "open" or name.split(".")[0] in ("os", "io", "shutil", "pathlib")}
        assert (touching <= allowed) == (path.name != "storage.py"), path
