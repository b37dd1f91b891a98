"""What survives: stops and faults at every operation of a save, power loss, kills, and the rules of a session."""

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt.train.checkpoint import Checkpointer, CheckpointError, load, save
from jopt.train.checkpoint.checkpoint import write_checkpoint
from jopt.train.checkpoint.storage import LockHeldError, Storage

OPERATIONS = [field.name for field in dataclasses.fields(Storage)]


def tree_of(step):
    rng = np.random.default_rng(step)
    return {"w": rng.standard_normal((40, 5)), "b": rng.standard_normal(3).astype(jnp.bfloat16), "step": step}


def same(a, b):
    return a.keys() == b.keys() and all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)


def watched(storage, before):
    """A storage that calls ``before(name, operation, arguments)`` in place of every operation."""

    def wrap(name):
        operation = getattr(storage, name)
        return lambda *arguments: before(name, operation, arguments)

    return Storage(**{name: wrap(name) for name in OPERATIONS})


# Stops -------------------------------------------------------------------------------------------


class Stop(BaseException):
    """The process is dead."""


class Stopping:
    """Lets operations pass until the k-th, and no operation after it: clean-up code of a dead process does not run."""

    def __init__(self, storage, at, how):
        self.at, self.how, self.seen, self.dead = at, how, [], False
        self.storage = watched(storage, self.call)

    def call(self, name, operation, arguments):
        if self.dead:
            raise Stop
        self.seen.append(name)
        if len(self.seen) - 1 != self.at:
            return operation(*arguments)
        self.dead = True
        if self.how == "torn" and name == "write":
            file, data = arguments
            operation(file, data[: len(data) // 2])
        elif self.how == "after":
            operation(*arguments)
        raise Stop


def first_steps(directory, storage, acknowledged):
    """Saves steps 1, 2, 3 and notes each that is acknowledged."""
    with Checkpointer(directory, keep=1, storage=storage).open() as session:
        for step in (1, 2, 3):
            if session.save(step, tree_of(step), {"step": step}):
                acknowledged.append(step)


def check(directory, storage, acknowledged):
    """The last acknowledged checkpoint, or a later one, loads bit-equal and without a complaint."""
    with Checkpointer(directory, storage=storage).open() as session:
        restored = session.latest(tree_of(0))
        leftovers = [name for name in storage.listdir(str(directory)) if name.endswith(".tmp")]
        assert leftovers == []
    if restored is None:
        assert acknowledged == []
        return
    assert restored.step in (*acknowledged[-1:], len(acknowledged) + 1)
    assert same(restored.tree, tree_of(restored.step))
    assert restored.meta == {"step": restored.step}


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_stop_at_any_operation_loses_nothing(how):
    disk = Disk()
    counting = Stopping(disk.storage(), None, how)
    first_steps("/run", counting.storage, [])
    total = len(counting.seen)
    assert {"create", "write", "fsync", "close", "replace", "fsync_dir", "unlink", "mkdir", "lock"} <= set(
        counting.seen
    )
    assert total >= 45
    for k in range(total):
        disk, acknowledged = Disk(), []
        with pytest.raises(Stop):
            first_steps("/run", Stopping(disk.storage(), k, how).storage, acknowledged)
        disk.end_process()
        check("/run", disk.storage(), acknowledged)


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_stop_of_the_real_file_system_loses_nothing(tmp_path, how):
    path = tmp_path / "a.jopt"
    k, finished, files = 0, False, []
    real = dataclasses.replace(Storage(), create=lambda path: files.append(Storage().create(path)) or files[-1])
    while not finished:
        save(path, tree_of(1))
        try:
            write_checkpoint(Stopping(real, k, how).storage, str(path), tree_of(2))
            finished = True
        except Stop:
            _ = files and files[-1].close()
        loaded = load(path, tree_of(0))
        assert same(loaded, tree_of(loaded["step"]))
        for temporary in tmp_path.glob("*.tmp"):
            temporary.unlink()
        k += 1
    assert loaded["step"] == 2
    assert k > 10


# Power loss --------------------------------------------------------------------------------------


class Inode:
    def __init__(self):
        self.now, self.durable = bytearray(), b""


class Handle:
    def __init__(self, inode):
        self.inode, self.position = inode, 0


class Disk:
    """A file system in memory that knows what a power loss would leave.

    The bytes of a file are durable after its `fsync`, the entries of a folder after its `fsync_dir`.
    """

    def __init__(self):
        self.now = {"/": {}}  # folder: {name: inode, or None for a folder}
        self.durable = {"/": {}}
        self.journal = []  # the changes of folders since, in order
        self.locked = set()

    def end_process(self):
        self.locked.clear()

    def storage(self):
        return Storage(**{name: getattr(self, name) for name in OPERATIONS})

    def _entry(self, path):
        folder, name = os.path.split(path)
        if folder not in self.now or name not in self.now[folder]:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.now[folder], name

    def _set(self, path, inode):
        folder, name = os.path.split(path)
        if folder not in self.now:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self.now[folder][name] = inode
        self.journal.append((folder, name, inode))

    def create(self, path):
        inode = Inode()
        self._set(path, inode)
        return Handle(inode)

    def open(self, path):
        folder, name = self._entry(path)
        return Handle(folder[name])

    def write(self, handle, data):
        handle.inode.now += data
        return len(data)

    def fsync(self, handle):
        handle.inode.durable = bytes(handle.inode.now)

    def close(self, handle):
        self.locked.discard(handle.inode)

    def replace(self, old, new):
        folder, name = self._entry(old)
        inode = folder.pop(name)
        self.journal.append((os.path.dirname(old), name, "gone"))
        self._set(new, inode)

    def unlink(self, path):
        folder, name = self._entry(path)
        del folder[name]
        self.journal.append((os.path.dirname(path), name, "gone"))

    def mkdir(self, path):
        if path in self.now:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._set(path, None)
        self.now[path], self.durable[path] = {}, {}

    def fsync_dir(self, path):
        self.durable[path] = dict(self.now[path])
        self.journal = [entry for entry in self.journal if entry[0] != path]

    def size(self, handle):
        return len(handle.inode.now)

    def seek(self, handle, offset):
        handle.position = offset

    def read_into(self, handle, data):
        part = handle.inode.now[handle.position : handle.position + len(data)]
        data[: len(part)] = part
        handle.position += len(part)
        return len(part)

    def listdir(self, path):
        return list(self.now[path])

    def free(self, path):
        return 1 << 40

    def lock(self, path, owner):
        folder, name = os.path.split(path)
        if name not in self.now[folder]:
            self._set(path, Inode())
        inode = self.now[folder][name]
        if inode in self.locked:
            raise LockHeldError("somebody")
        self.locked.add(inode)
        return Handle(inode)

    def after_power_loss(self, rng):
        """What is found afterwards.

        Without `rng` all that was not flushed is lost. With it, some of the changes of folders, up to
        a moment, are there, and of a file what was not flushed is cut, zero, or there.
        """
        left = Disk()
        left.now = {path: dict(entries) for path, entries in self.durable.items()}
        for folder, name, inode in self.journal[: rng.randint(0, len(self.journal)) if rng else 0]:
            if inode == "gone":
                left.now[folder].pop(name, None)
            else:
                left.now[folder][name] = inode
        reachable = {"/"}
        for path in sorted(left.now):
            folder, name = os.path.split(path)
            if path != "/" and folder in reachable and name in left.now[folder]:
                reachable.add(path)
        left.now = {path: entries for path, entries in left.now.items() if path in reachable}
        for entries in left.now.values():
            for name, old in entries.items():
                if old is not None:
                    entries[name] = Inode()
                    entries[name].now = bytearray(_after_power_loss(old, rng))
        left.durable = {path: dict(entries) for path, entries in left.now.items()}
        return left


def _after_power_loss(inode, rng):
    flushed, lost = inode.durable, len(inode.now) - len(inode.durable)
    sort = rng.randrange(4) if rng else 0
    if sort == 0:
        return flushed
    if sort == 1:
        return bytes(inode.now)
    return flushed + (bytes(lost) if sort == 2 else bytes(inode.now[len(flushed) :])[: rng.randint(0, lost)])


def lose_power_everywhere(storage_of, draws):
    """Run `first_steps`, lose power after each operation, and check what is found; how often that was done."""
    counting = Stopping(Disk().storage(), None, "after")
    first_steps("/run", counting.storage, [])
    for k in range(len(counting.seen)):
        for seed in (None, *range(draws)):
            disk, acknowledged = Disk(), []
            with pytest.raises(Stop):
                first_steps("/run", Stopping(storage_of(disk), k, "after").storage, acknowledged)
            left = disk.after_power_loss(None if seed is None else random.Random(f"{k} {seed}"))
            check("/run", left.storage(), acknowledged)
    return len(counting.seen)


def test_a_power_loss_after_any_operation_loses_no_acknowledged_checkpoint():
    assert lose_power_everywhere(Disk.storage, draws=6) >= 45


@pytest.mark.slow
def test_many_kinds_of_power_loss_lose_no_acknowledged_checkpoint():
    lose_power_everywhere(Disk.storage, draws=300)


@pytest.mark.parametrize("forgotten", ["fsync", "fsync_dir"])
def test_the_model_of_power_loss_notices_a_forgotten_flush(forgotten):
    """So that the test above can fail."""

    def careless(disk):
        return dataclasses.replace(disk.storage(), **{forgotten: lambda _: None})

    with pytest.raises((AssertionError, UserWarning)):
        lose_power_everywhere(careless, draws=6)


# Faults of the storage ---------------------------------------------------------------------------


class Failing:
    """Raises at the k-th operation (and at all later ones, if it lasts), from when it is armed."""

    def __init__(self, storage, number):
        self.number, self.at, self.lasts, self.seen = number, None, False, []
        self.storage = watched(storage, self.call)

    def arm(self, at, lasts):
        self.at, self.lasts, self.seen = at, lasts, []

    def call(self, name, operation, arguments):
        self.seen.append(name)
        k = len(self.seen) - 1
        if self.at is not None and (k == self.at or (self.lasts and k > self.at)):
            if name == "write":  # a full disk takes a part first
                operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(self.number, os.strerror(self.number))
        return operation(*arguments)


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"])
def test_a_fault_at_any_operation_keeps_the_run_and_the_older_checkpoints(kind, lasts):
    k, total = 0, None
    while total is None or k < total:
        disk = Disk()
        failing = Failing(disk.storage(), getattr(errno, kind))
        session = Checkpointer("/run", keep=1, storage=failing.storage).open()
        assert session.save(1, tree_of(1), {"step": 1})
        failing.arm(None, False)
        if total is None:
            assert session.save(2, tree_of(2), {"step": 2})
            total = len(failing.seen)
            continue
        failing.arm(k, lasts)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved = session.save(2, tree_of(2), {"step": 2})
            failing.arm(None, False)
            restored = session.latest(tree_of(0))
        assert saved or len(caught) == 1
        assert all(kind in str(w.message) for w in caught)
        assert restored.step == 2 if saved else restored.step in (1, 2)
        assert same(restored.tree, tree_of(restored.step))
        # The run goes on, and the next save succeeds.
        assert session.save(3, tree_of(3), {"step": 3})
        assert session.latest(tree_of(0)).step == 3
        if not lasts:
            assert not [name for name in disk.listdir("/run") if name.endswith(".tmp")]
        session.close()
        k += 1
    assert total >= 15


def test_a_kind_of_fault_is_told_once(tmp_path):
    failing = Failing(Storage(), errno.ENOSPC)
    with Checkpointer(tmp_path, storage=failing.storage).open() as session:
        assert session.save(1, tree_of(1))
        failing.arm(0, True)
        with pytest.warns(UserWarning, match="ENOSPC.*step 2 is not saved") as caught:
            assert [session.save(step, tree_of(step)) for step in (2, 3)] == [False, False]
        assert len(caught) == 1
        failing.number = errno.EROFS
        with pytest.warns(UserWarning, match="EROFS"):
            assert not session.save(4, tree_of(4))
        failing.arm(None, False)
        assert session.latest(tree_of(0)).step == 1


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path):
    storage = dataclasses.replace(Storage(), free=lambda path: 1000, create=lambda path: pytest.fail("it began"))
    with (
        Checkpointer(tmp_path, storage=storage).open() as session,
        pytest.warns(UserWarning, match="ENOSPC.*1000 are free"),
    ):
        assert not session.save(1, tree_of(1))


def test_the_limit_of_a_file_size_is_survived(tmp_path):
    import resource

    with Checkpointer(tmp_path).open() as session:
        assert session.save(1, tree_of(1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.warns(UserWarning, match="EFBIG"):
                assert not session.save(2, {"w": np.zeros(10_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert sorted(os.listdir(tmp_path)) == ["lock", "step_000000001.jopt"]
        assert session.latest(tree_of(0)).step == 1


def test_a_folder_that_is_gone_is_survived(tmp_path):
    directory = tmp_path / "run"
    with Checkpointer(directory).open() as session:
        (directory / "lock").unlink()
        directory.rmdir()
        with pytest.warns(UserWarning, match="ENOENT"):
            assert not session.save(1, tree_of(1))


def test_interrupts_leave_no_temporary_file(tmp_path):
    def interrupt(file):
        raise KeyboardInterrupt

    storage = dataclasses.replace(Storage(), fsync=interrupt)
    with Checkpointer(tmp_path, storage=storage).open() as session, pytest.raises(KeyboardInterrupt):
        session.save(1, tree_of(1))
    assert os.listdir(tmp_path) == ["lock"]


# Kills -------------------------------------------------------------------------------------------

KILLS = """
import os, random, signal, struct, sys, time
import numpy as np
from jopt.train.checkpoint import Checkpointer

directory, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)

def tree_of(step):
    values = np.random.default_rng(step)
    return {"w": values.standard_normal((100, 500)), "v": values.standard_normal(1000), "step": step}

def train(acknowledge):
    with Checkpointer(directory).open() as session:
        restored = session.latest(tree_of(0))
        step = restored.step if restored else 0
        while True:
            step += 1
            if session.save(step, tree_of(step), {"step": step}):
                os.write(acknowledge, struct.pack("q", step))

acknowledged, late = 0, 0
for kill in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        train(write)
    os.close(write)
    if kill % 2:  # half of the kills while it starts, half while it saves
        os.read(read, 8)
        acknowledged += 1  # at least; the exact number is read below
    time.sleep(rng.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = b""
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    if said:
        acknowledged = struct.unpack("q", said[-8:])[0]
    with Checkpointer(directory).open() as session:
        restored = session.latest(tree_of(0))
        assert acknowledged == 0 if restored is None else restored.step in (acknowledged, acknowledged + 1), restored
        if restored is not None:
            expected = tree_of(restored.step)
            assert restored.meta == {"step": restored.step}
            for name in ("w", "v"):
                assert restored.tree[name].tobytes() == expected[name].tobytes()
            late += restored.step > acknowledged
            acknowledged = restored.step
        names = os.listdir(directory)
        assert not [name for name in names if name.endswith((".tmp", ".corrupt"))], names
print("survived", kills, "saved", acknowledged, "late", late)
"""


def survive(tmp_path, kills):
    arguments = [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path), str(kills), "0"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"survived {kills} ")
    assert int(run.stdout.split()[3]) >= kills // 2


def test_a_killed_run_resumes_from_what_was_acknowledged(tmp_path):
    survive(tmp_path, 6)


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path):
    survive(tmp_path, 200)


# Locks -------------------------------------------------------------------------------------------


def test_a_second_session_in_this_process_is_refused(tmp_path):
    with Checkpointer(tmp_path).open(), pytest.raises(CheckpointError, match=f"process {os.getpid()} on "):
        Checkpointer(tmp_path).open()
    with Checkpointer(tmp_path).open():
        pass


def test_another_process_is_refused_until_it_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom jopt.train.checkpoint import Checkpointer\n"
        "session = Checkpointer(sys.argv[1]).open()\nprint('open', flush=True)\ntime.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with holder:
        try:
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(CheckpointError, match=f"process {holder.pid} on .* is using this folder"):
                Checkpointer(tmp_path).open()
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    with Checkpointer(tmp_path).open() as session:
        assert session.save(1, tree_of(1))


@pytest.mark.parametrize("kind", ["ENOLCK", "ENOTSUP", "EROFS", "EACCES"])
def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, kind):
    def no_lock(path, owner):
        raise OSError(getattr(errno, kind), "no lock", path)

    (tmp_path / "step_000000009.jopt.00000000.tmp").touch()
    storage = dataclasses.replace(Storage(), lock=no_lock)
    with pytest.warns(UserWarning, match="let no other run use it"):
        session = Checkpointer(tmp_path, storage=storage).open()
    assert session.save(1, tree_of(1))
    assert session.latest(tree_of(0)).step == 1
    session.close()
    assert (tmp_path / "step_000000009.jopt.00000000.tmp").exists(), "it may be another run's"


# The rules of a session --------------------------------------------------------------------------


def test_folders_are_made_and_a_file_in_their_place_is_an_error(tmp_path):
    with Checkpointer(tmp_path / "a" / "b" / "c").open() as session:
        assert session.latest({}) is None
        assert session.steps() == []
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(CheckpointError, match="a folder to write into was expected"):
            Checkpointer(tmp_path / name).open()


def test_the_newest_are_kept_and_the_best(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0, 5: 1.0, 6: None, 7: float("-inf"), 8: 2.0}
    with Checkpointer(tmp_path, keep=2, best="loss").open() as session:
        for step, loss in losses.items():
            metrics = {} if loss is None else {"loss": np.float32(loss)}
            assert session.save(step, tree_of(step), metrics=metrics)
        assert session.steps() == [2, 7, 8]
        assert session.best(tree_of(0)).step == 2
    # The next run knows it from the files.
    with Checkpointer(tmp_path, keep=1, best=("loss", "max")).open() as session:
        assert session.best(tree_of(0)).step == 8
        assert session.save(9, tree_of(9), metrics={"loss": 1.5})
        assert session.steps() == [8, 9]
    with Checkpointer(tmp_path).open() as session, pytest.raises(ValueError, match="has no best="):
        session.best(tree_of(0))


def test_without_the_metric_there_is_no_best(tmp_path):
    with Checkpointer(tmp_path, best="loss").open() as session:
        assert session.best(tree_of(0)) is None
        assert session.save(1, tree_of(1), metrics={"accuracy": 1.0})
        assert session.best(tree_of(0)) is None


def test_nothing_is_deleted_before_the_new_one_is_safe():
    disk, order = Disk(), []

    def note(name, operation, arguments):
        order.append(name)
        return operation(*arguments)

    with Checkpointer("/run", keep=1, storage=watched(disk.storage(), note)).open() as session:
        assert session.save(1, tree_of(1))
        order.clear()
        assert session.save(2, tree_of(2))
        assert order.index("replace") < order.index("fsync_dir") < order.index("unlink")
        assert order.count("unlink") == 1


def test_the_order_is_that_of_steps_not_of_clocks(tmp_path):
    with Checkpointer(tmp_path, keep=5).open() as session:
        for step in (1000, 2, 10**9, 30):
            assert session.save(step, tree_of(step))
        for name, time in (("step_000000002.jopt", 2e9), ("step_1000000000.jopt", 1.0)):
            os.utime(tmp_path / name, (time, time))
        assert session.steps() == [2, 30, 1000, 10**9]
        assert session.latest(tree_of(0)).step == 10**9


def test_a_save_never_deletes_itself(tmp_path):
    """A run that starts anew in the folder of a longer one."""
    with Checkpointer(tmp_path, keep=2).open() as session:
        for step in (100, 200, 5):
            assert session.save(step, tree_of(step))
        assert session.steps() == [5, 100, 200]


def test_damaged_files_neither_count_nor_vanish(tmp_path):
    with Checkpointer(tmp_path, keep=2).open() as session:
        for step in (1, 2):
            assert session.save(step, tree_of(step))
        (tmp_path / "step_000000050.jopt").write_bytes(b"damaged")
        assert session.save(3, tree_of(3))
        assert session.steps() == [2, 3, 50]
        for number in range(2):
            with pytest.warns(UserWarning, match=r"renamed to 'step_000000050\.jopt\.corrupt_?'"):
                assert session.latest(tree_of(0)).step == 3
            (tmp_path / "step_000000050.jopt").write_bytes(b"again")
            assert len(list(tmp_path.glob("*.corrupt*"))) == number + 1


def test_when_all_are_damaged_there_is_none_and_each_is_told(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step_00000000{step}.jopt").write_bytes(b"x")
    with Checkpointer(tmp_path).open() as session, pytest.warns(UserWarning, match="damaged") as caught:
        assert session.latest({}) is None
    assert len(caught) == 2


def test_a_sound_file_that_does_not_fit_is_an_error_and_stays(tmp_path):
    with Checkpointer(tmp_path).open() as session:
        for step in (1, 2):
            assert session.save(step, tree_of(step))
        with pytest.raises(CheckpointError, match="head"):
            session.latest({**tree_of(0), "head": np.ones(2)})
        assert session.steps() == [1, 2]


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    others = ["notes.txt", "step_1.jopt", "step_000000001.jopt.bak", "my.tmp", "xstep_000000001.jopt", "step_abc.jopt"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / "step_000000007.jopt.0123abcd.tmp").touch()
    with Checkpointer(tmp_path, keep=1).open() as session:
        for step in (1, 2):
            assert session.save(step, tree_of(step))
        assert session.latest(tree_of(0)).step == 2
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "lock", "step_000000002.jopt"])


def test_a_session_reconciles_hyper_parameters(tmp_path, capsys):
    params, old, new = {"w": jnp.ones(2)}, jopt.sgd(0.1), jopt.sgd(0.2)
    with Checkpointer(tmp_path).open() as session:
        assert session.save(1, old.init(params), tx=old)
        restored = session.latest(new.init(params), tx=new)
        assert "learning_rate: 0.1 -> 0.2" in capsys.readouterr().out
        assert jopt.hyperparams(restored.tree)["learning_rate"] == np.float32(0.2)
        restored = session.latest(new.init(params), tx=new, hyperparams="state")
        assert jopt.hyperparams(restored.tree)["learning_rate"] == np.float32(0.1)


def test_like_may_depend_on_meta(tmp_path):
    with Checkpointer(tmp_path).open() as session:
        assert session.save(1, {"w": np.ones(2), "best": np.ones(3)}, {"best": 3})
        restored = session.latest(lambda meta: {"w": np.zeros(2), "best": np.zeros(meta["best"])})
        np.testing.assert_array_equal(restored.tree["best"], np.ones(3))


def test_metrics_that_are_no_numbers_are_left_out(tmp_path):
    with Checkpointer(tmp_path, best="loss").open() as session:
        metrics = {"loss": jnp.float32(2.0), "name": "x", "matrix": np.ones((2, 2)), "none": None}
        assert session.save(1, tree_of(1), metrics=metrics)
        assert session.best(tree_of(0)).step == 1


def test_a_tree_that_cannot_be_saved_is_an_error(tmp_path):
    with Checkpointer(tmp_path).open() as session:
        with pytest.raises(CheckpointError, match="'name'"):
            session.save(1, {"name": "text"})
        with pytest.raises(ValueError, match="step=-1"):
            session.save(-1, {})
        assert session.steps() == []


@pytest.mark.parametrize(
    "arguments",
    [{"every": "step"}, {"every": 0}, {"keep": 0}, {"keep": 1.5}, {"best": ("loss", "least")}, {"best": 3}],
    ids=str,
)
def test_arguments_outside_their_domain_are_named(tmp_path, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Checkpointer: {name}="):
        Checkpointer(tmp_path, **arguments)


def test_a_checkpointer_is_its_configuration(tmp_path):
    made = Checkpointer(tmp_path, every=10, best="loss")
    assert made == Checkpointer(str(tmp_path), every=10, best=("loss", "min"))
    assert hash(made) == hash(Checkpointer(str(tmp_path), every=10, best=("loss", "min")))
    assert "storage" not in repr(made)
    assert Path(made.directory) == tmp_path
