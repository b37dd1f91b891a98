"""Loggers: files survive kills and resumes, event files read back, and a failing logger stops nothing."""

import contextlib
import csv
import importlib.util
import json
import math
import re
import struct
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopt.train.fragile import Fragile
from jopt.train.loggers import CSV, JSONL, TensorBoard, as_logger

FILES = pytest.mark.parametrize("make", [JSONL, CSV])


def read(path):
    """The rows of a file, as (step, loss) with the loss a float or None."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(path.read_text().splitlines()))
    return [(int(row["step"]), float(row["loss"]) if row.get("loss") else None) for row in rows]


@pytest.fixture
def log(tmp_path):
    """Log steps to one file, as a run that starts at a step; leave it open where `killed`."""
    kept = []

    def run(make, steps, start=0, killed=False, loss=1.0):
        path = tmp_path / "runs" / f"log.{make.__name__.lower()}"
        logger = make(path)
        kept.append(logger)
        logger.start({"step": start})
        for step in steps:
            logger.log({"step": step, "loss": loss * step}, step)
        if not killed:
            logger.close()
        return path

    yield run
    for logger in kept:
        logger.close()


# Files -------------------------------------------------------------------------------------------


@FILES
def test_a_row_is_on_disk_as_soon_as_it_is_logged(make, log):
    assert read(log(make, [1, 2], killed=True)) == [(1, 1.0), (2, 2.0)]


@FILES
def test_a_new_run_begins_anew(make, log):
    log(make, [0, 1, 2, 3])
    assert read(log(make, [1], loss=5.0)) == [(1, 5.0)]


@FILES
@pytest.mark.parametrize("resumed", range(1, 6))
def test_a_resumed_run_neither_loses_nor_repeats_rows(make, log, resumed):
    log(make, [1, 2, 3, 4, 5], killed=True)
    path = log(make, range(resumed + 1, 8), start=resumed)
    assert read(path) == [(step, float(step)) for step in range(1, 8)]


@FILES
def test_a_run_killed_at_any_byte_is_repaired(make, log):
    whole = log(make, [1, 2, 3]).read_bytes()
    for cut in range(len(whole)):
        path = log(make, [])
        path.write_bytes(whole[:cut])
        log(make, [3, 4], start=2)
        complete = [row for row in [(1, 1.0), (2, 2.0)] if cut >= whole.index(b"\n", whole.index(b"%d.0" % row[0])) + 1]
        assert read(path) == [*complete, (3, 3.0), (4, 4.0)], cut


@FILES
def test_a_step_that_is_logged_again_replaces_what_came_after(make, log):
    assert read(log(make, [1, 2, 3, 2])) == [(1, 1.0), (2, 2.0)]


@FILES
def test_logging_without_a_start_appends(make, tmp_path):
    path = tmp_path / f"log.{make.__name__.lower()}"
    for step in (1, 2):
        logger = make(path)
        logger.log({"loss": jnp.float32(step)}, step)
        logger.close()
    assert read(path) == [(1, 1.0), (2, 2.0)]


@FILES
@pytest.mark.parametrize(
    "content", ["my results\n", "my results", "step-by-step\n1. cook\n", '{"step": "by step"}\n', "\xff"]
)
def test_a_foreign_file_is_left_alone(make, tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"a file that this logger did not write was given.*the file is left as it is"):
        make(path).start({"step": 0})
    assert path.read_bytes() == content.encode("latin1")


def test_json_is_strict(tmp_path):
    logger = JSONL(tmp_path / "log.jsonl")
    logger.log({"loss": math.nan, "top": np.float32(0.5), "n": np.int32(3), "why": "a\nb", "z": jnp.bfloat16(2)}, 1)
    logger.close()
    text = logger.path.read_text()
    row = json.loads(text, parse_constant=pytest.fail)
    assert row == {"step": 1, "loss": None, "top": 0.5, "n": 3, "why": "a b", "z": 2.0}


def test_csv_columns_may_come_later(tmp_path):
    logger = CSV(tmp_path / "log.csv")
    logger.log({"loss": 0.5}, 1)
    logger.log({"loss": math.nan, 'odd, "name"\n': 1}, 2)
    logger.log({"eval_loss": 0.25}, 3)
    logger.close()
    with logger.path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["step", "loss", 'odd, "name"\n', "eval_loss"],
        ["1", "0.5", "", ""],
        ["2", "nan", "1", ""],
        ["3", "", "", "0.25"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]  # nothing is left beside it


def test_csv_goes_on_with_the_columns_it_has(tmp_path):
    for start, values in ((0, {"a": 1, "b": 2}), (1, {"b": 3}), (2, {"c": 4})):
        logger = CSV(tmp_path / "log.csv")
        logger.start({"step": start})
        logger.log(values, start + 1)
        logger.close()
    assert logger.path.read_text() == "step,a,b,c\n1,1,2,\n2,,3,\n3,,,4\n"


# The adapter -------------------------------------------------------------------------------------


class Everything:
    wants_gradients = True

    def __init__(self):
        self.calls = []

    def start(self, config):
        self.calls.append(("start", config))

    def log(self, values, step):
        self.calls.append(("log", values, step))

    def wants_arrays(self, step):
        return step >= 2

    def log_arrays(self, params, state, step, gradients):
        self.calls.append(("arrays", params, state, step, gradients))

    def close(self):
        self.calls.append(("close",))


def run(logger, steps=(1, 2)):
    """Call a logger as `fit` does."""
    logger.start({"step": 0})
    for step in steps:
        logger.log({"loss": 1.0}, step)
        if logger.wants_arrays:
            logger.log_arrays("params", "state", step, gradients="gradients" if logger.wants_gradients else None)
    logger.close()


def test_every_method_is_called():
    mine = Everything()
    run(as_logger(mine))
    assert mine.calls == [
        ("start", {"step": 0}),
        ("log", {"loss": 1.0}, 1),
        ("log", {"loss": 1.0}, 2),
        ("arrays", "params", "state", 2, "gradients"),
        ("close",),
    ]


def test_only_log_is_needed():
    calls = []

    class Short:
        def log(self, values, step):
            calls.append((values, step))

    run(as_logger(Short()))
    run(as_logger(lambda values, step: calls.append((values, step))))
    assert calls == [({"loss": 1.0}, 1), ({"loss": 1.0}, 2)] * 2


def test_gradients_are_given_only_to_loggers_that_want_them():
    seen = []

    class Weights:
        def log(self, values, step):
            pass

        def log_arrays(self, params, state, step):
            seen.append(step)

    run(as_logger(Weights()))
    assert seen == [1, 2]


def test_a_logger_cannot_change_the_row():
    row = {"loss": 1.0}
    as_logger(lambda values, step: values.clear()).log(row, 1)
    assert row == {"loss": 1.0}


def test_what_is_no_logger_is_an_error():
    with pytest.raises(TypeError, match=r"loggers: 'run.csv' was given.*CSV\('run.csv'\)"):
        as_logger("run.csv")
    with pytest.raises(TypeError, match=r"the class JSONL was given.*Make one: JSONL\(\.\.\.\)"):
        as_logger(JSONL)
    assert as_logger(logger := as_logger(print)) is logger


@pytest.mark.parametrize("method", ["start", "log", "wants_arrays", "log_arrays"])
def test_a_failing_logger_is_reported_once_and_switched_off(method):
    def fail(*args, **keywords):
        mine.calls.append(("failed",))
        raise OSError("disk full")

    mine = Everything()
    setattr(mine, method, fail)
    with pytest.warns(RuntimeWarning, match="the logger 'Everything' failed with OSError: disk full") as caught:
        run(as_logger(mine), steps=range(1, 6))
    assert len(caught) == 1
    names = [call[0] for call in mine.calls]
    assert names.count("failed") == 1
    assert names[names.index("failed") + 1 :] == ["close"]


def test_a_logger_that_fails_to_close_is_reported():
    mine = Everything()
    mine.close = lambda: 1 / 0
    with pytest.warns(RuntimeWarning, match="closing the logger 'Everything' failed with ZeroDivisionError"):
        run(as_logger(mine))


def test_fragile_calls_pass_values_and_interrupts():
    assert Fragile("sum", sum)([1, 2]) == 3

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Fragile("interrupt", interrupt)()


# TensorBoard -------------------------------------------------------------------------------------


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit through its table."""
    table = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def check(data, masked):
    crc = crc32c(data)
    assert masked == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """All events of the event files of a folder, in the order of their names, every record checked."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            check(data[:8], *struct.unpack("<I", data[8:12]))
            record, data = data[12 : 12 + length], data[12 + length :]
            check(record, *struct.unpack("<I", data[:4]))
            found.append(event_pb2.Event.FromString(record))
            data = data[4:]
    return found


def values(folder, kind):
    return {
        (event.step, value.tag): getattr(value, kind)
        for event in events(folder)
        for value in event.summary.value
        if value.WhichOneof("value") == kind
    }


def test_the_checksum_is_the_standards():
    assert crc32c(b"123456789") == 0xE3069283


def test_scalars_read_back(tmp_path):
    pytest.importorskip("tensorboardX")
    logger = TensorBoard(tmp_path / "run")
    logger.start({"step": 0})
    logger.log({"step": 5, "loss": 0.5, "hyperparams/b1": 0.9, "odd $ name": 1}, 5)
    logger.log({"step": 9, "loss": math.nan, "eval_loss": 0.25}, 9)
    logger.close()
    found = values(tmp_path / "run", "simple_value")
    assert found.pop((5, "hyperparams/b1")) == pytest.approx(0.9)
    assert math.isnan(found.pop((9, "loss")))
    assert found == {(5, "loss"): 0.5, (5, "odd $ name"): 1.0, (9, "eval_loss"): 0.25}


def test_the_configuration_reads_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    logger = TensorBoard(tmp_path)
    logger.start({"step": 0, "tx": "adam(0.001)", "total": 100, "odd": [1]})
    logger.close()
    found = [value for event in events(tmp_path) for value in event.summary.value]
    start = next(v for v in found if v.tag == "_hparams_/session_start_info")
    data = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info.hparams
    assert {name: data[name].string_value or data[name].number_value for name in data} == {
        "tx": "adam(0.001)",
        "total": 100.0,
    }


def test_histograms_read_back_under_the_paths_of_the_parameters(tmp_path):
    pytest.importorskip("tensorboardX")
    params = {
        "dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.asarray([jnp.nan, 1, 2], jnp.bfloat16)},
        "complex": jnp.asarray([3 + 4j]),
        "key": jax.random.key(0),
        "steps": jnp.int32(3),
        "empty": jnp.zeros((0,)),
        "frozen": None,
    }
    logger = as_logger(TensorBoard(tmp_path, histograms_every=10, gradients=True))
    logger.start({"step": 0})
    for step in (1, 5, 11):
        logger.log({}, step)
        if logger.wants_arrays:
            assert logger.wants_gradients
            logger.log_arrays(params, None, step, gradients={"dense": {"kernel": jnp.full((2, 3), -1.0)}})
    logger.close()
    found = values(tmp_path, "histo")
    paths = ("params/complex", "params/dense/bias", "params/dense/kernel", "gradients/dense/kernel")
    assert set(found) == {(step, path) for step in (1, 11) for path in paths}  # not at 5
    kernel = found[1, "params/dense/kernel"]
    assert (kernel.num, kernel.sum, kernel.min, kernel.max) == (6, 15, 0, 5)
    assert found[1, "params/dense/bias"].num == 2  # without the NaN
    assert found[1, "params/complex"].max == 5
    assert found[1, "gradients/dense/kernel"].sum == -6


def test_gradients_and_histograms_are_not_asked_for_by_default(tmp_path):
    pytest.importorskip("tensorboardX")
    logger = as_logger(TensorBoard(tmp_path))
    assert not logger.wants_gradients
    assert not logger.wants_arrays


def test_a_resumed_run_hides_what_came_after(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import SessionLog

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # both within a second: neither overwrites the other
        logger = TensorBoard(tmp_path)
        logger.start({"step": start})
        for step in steps:
            logger.log({"loss": start + step}, step)
        logger.close()
    visible = {}
    for event in events(tmp_path):
        if event.session_log.status == SessionLog.START:  # what TensorBoard's reader does with it
            visible = {step: loss for step, loss in visible.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "loss":
                visible[event.step] = value.simple_value
    assert visible == {1: 1, 2: 2, 3: 5, 4: 6}


def test_a_missing_extra_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'pip install "jopt\[tb\]"'):
        TensorBoard(tmp_path)


# The recipes --------------------------------------------------------------------------------------

RECIPES = Path(__file__).parent.parent / "docs" / "recipes_loggers.md"


class FakeRun:
    """W&B's run, as far as a logger sees it: steps must increase."""

    def __init__(self, project=None, config=None, id=None, resume=None):
        self.rows, self.finished = [], False

    def log(self, data, step=None, commit=None):
        assert not self.finished
        assert not self.rows or step > self.rows[-1][0]
        self.rows.append((step, data))

    def finish(self):
        self.finished = True


def fake_mlflow():
    module = types.ModuleType("mlflow")
    module.params, module.metrics = {}, []
    module.start_run = lambda run_id=None, experiment_id=None, run_name=None: contextlib.nullcontext()
    module.log_params = module.params.update

    def log_metrics(metrics, step=None, synchronous=None, run_id=None):
        assert all(isinstance(value, int | float) for value in metrics.values())
        assert all(re.fullmatch(r"[\w\-. :/]+", name) for name in metrics)  # what MLflow allows
        module.metrics.append((step, metrics))

    module.log_metrics = log_metrics
    return module


@pytest.mark.filterwarnings("error")
def test_the_recipes_run_as_they_stand(monkeypatch, tmp_path):
    wandb, mlflow = types.ModuleType("wandb"), fake_mlflow()
    wandb.init = FakeRun
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", RECIPES.read_text(), re.DOTALL)
    assert len(blocks) == 6
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # a reader's JAX is not strict
        for block in blocks:
            if block is not blocks[0]:
                assert len([line for line in block.splitlines() if line.strip()]) <= 10
            if "TensorBoard" not in block or importlib.util.find_spec("tensorboardX"):
                exec(compile(block, RECIPES.name, "exec"), names)
    steps = [step for step, _ in names["run"].rows]
    assert len(steps) == 2
    assert names["run"].finished
    assert mlflow.params == {"learning_rate": 0.1}
    assert [step for step, _ in mlflow.metrics] == steps
    assert read(tmp_path / "runs/line.csv") == read(tmp_path / "runs/line.jsonl")
    assert [step for step, _ in read(tmp_path / "runs/line.csv")] == steps
    assert set(names["Norms"].seen) == set(steps)
    assert {"loss", "slope", "offset"} <= set(names["Norms"].seen[steps[0]])
    if "board" in names:
        found = values(tmp_path / "runs/line", "histo")
        assert {(step, f"gradients/{name}") for step in steps for name in ("slope", "offset")} <= set(found)
