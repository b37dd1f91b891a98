"""What a run shows: right in a terminal, a log, a notebook and through tqdm; a broken output stops nothing."""

import io
import re
import sys
import types

import pytest

from jopt.train.progress import make_progress
from jopt.train.screens import fitting
from jopt.train.status import Speed, Status, clipped, line

HOSTILE = "<img src=x onerror=alert(1)>"


class Clock:
    """Seconds that pass only when a test says so."""

    now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that is a terminal; `shown` is what a person sees."""

    def __init__(self, encoding="utf-8"):
        super().__init__()
        self.name = encoding

    encoding = property(lambda self: self.name)

    def isatty(self):
        return True

    def write(self, text):
        text.encode(self.encoding)  # as a real stream does
        return super().write(text)

    def shown(self):
        lines, column = [[]], 0
        for part in re.findall(r"\x1b\[K|.|\n", self.getvalue(), re.DOTALL):
            if part == "\n":
                lines.append([])
                column = 0
            elif part == "\r":
                column = 0
            elif part == "\x1b[K":
                del lines[-1][column:]
            else:
                lines[-1][column : column + 1] = [part]
                column += 1
        return ["".join(characters).rstrip() for characters in lines]


def train(progress, clock, steps=100, epochs=5, pause=0.3, chunk=4, watch=lambda step: None, close=True):
    """Call a display as `fit` does: an evaluated record at every epoch, another in between."""
    progress.start(steps, 0, epochs, "adam on digits")
    clock.now += 3
    progress.compiled(3.21)
    length = steps // epochs
    for step in range(chunk, steps + 1, chunk):
        clock.now += pause
        values = {"loss": 1 / step, "accuracy": step / (steps + 1), "learning_rate": 1e-3}
        progress.update(step, step / length, values)
        row = {"step": step, "epoch": step / length, "seconds": clock.now - 1000, **values, "hyperparams/b1": 0.9}
        if step % length == 0:
            progress.record(row | {"eval_loss": 2 / step}, [*row, "eval_loss"])
        elif step % length == length // 5 * 3:
            progress.record(row, list(row))
        watch(step)
    if close:
        progress.close("done")


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delitem(sys.modules, "IPython", raising=False)


# The terminal ------------------------------------------------------------------------------------


def test_a_terminal_shows_a_table_and_a_line_that_is_rewritten():
    clock, stream, seen = Clock(), Terminal(), {}
    progress = make_progress(True, stream, clock)
    train(progress, clock, watch=lambda step: seen.setdefault(step, stream.shown()))
    live = seen[48][-1]
    assert live.startswith("━━━━━━━─────────  48%  0:04 left  13 it/s  loss 0.0208  accuracy 47.52%  lr 0.001")
    assert "hyperparams" not in live
    assert "epoch 2.40/5" in live
    lines = stream.shown()
    assert lines[:2] == ["adam on digits", "compiled in 3.2 s"]
    assert sum("epoch" in text for text in lines) == 2  # a heading, and another when eval loss came
    assert lines[5].split() == ["epoch", "step", "loss", "accuracy", "eval", "loss", "learning", "rate", "seconds"]
    assert lines[7].split() == ["1", "20", "0.0500", "19.80%", "0.1000", "0.001", "4.50"]
    assert lines[-2:] == ["done", ""]
    assert not any("━" in text for text in lines)


def test_it_says_that_it_compiles_and_later_how_long_it_took_once():
    clock, stream = Clock(), Terminal()
    progress = make_progress(True, stream, clock)
    progress.start(10, 0, 1, "")
    assert stream.shown() == ["compiling…"]
    progress.compiled(2)
    assert stream.shown()[0] == "compiled in 2.0 s"
    train(progress, clock)
    assert "compiling" not in stream.shown()[-1]


@pytest.mark.parametrize("columns", [20, 40, 63, 79, 100, 200])
def test_no_line_of_a_terminal_wraps(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    clock, stream, widest = Clock(), Terminal(), []
    train(make_progress(True, stream, clock), clock, watch=lambda step: widest.append(max(map(len, stream.shown()))))
    assert max(widest) < columns


def test_columns_that_matter_least_are_left_out_first():
    columns = ("epoch", "step", "loss", "eval_loss", "learning_rate", "seconds")
    assert fitting(columns, 100) == columns
    assert fitting(columns, 55) == ("epoch", "step", "loss", "eval_loss", "learning_rate")
    assert fitting(columns, 45) == ("epoch", "loss", "eval_loss", "learning_rate")
    assert fitting(columns, 1) == ("epoch", "loss")


def test_wide_characters_count_twice():
    assert clipped("精度 0.5", 5) == "精度 "
    assert clipped("精度 0.5", 3) == "精"
    assert clipped("e\u0301a", 1) == "e\u0301"


def test_a_note_does_not_break_the_line():
    clock, stream = Clock(), Terminal()
    progress = make_progress(True, stream, clock)
    train(progress, clock, steps=40, epochs=1, close=False, watch=lambda step: step == 20 and progress.note("a logger"))
    lines = stream.shown()
    assert "a logger" in lines
    assert lines[-1].startswith("━" * 16)


def test_a_stream_without_unicode_gets_ascii():
    clock, stream, seen = Clock(), Terminal("ascii"), []
    progress = make_progress(True, stream, clock)
    train(progress, clock, close=False, watch=lambda step: seen.append(stream.shown()[-1]))
    progress.note("精度 – done")
    assert "compiling..." in stream.getvalue()
    assert seen[11].startswith("=======---------  48%")
    assert "?? ? done" in stream.shown()


def test_what_a_metric_is_called_cannot_steer_a_terminal():
    stream = Terminal()
    progress = make_progress(True, stream, Clock())
    progress.start(10, 0, 1, "")
    progress.update(1, 0.1, {"bad\x1b[2J\nname": 1.0})
    progress.record({"step": 1, "bad\x1b[2J\nname": 1.0}, ["bad\x1b[2J\nname"])
    assert "\x1b[2J" not in stream.getvalue()


# A log -------------------------------------------------------------------------------------------


def lines_of(**keywords):
    clock, stream = Clock(), io.StringIO()
    train(make_progress(True, stream, clock), clock, **keywords)
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    return stream.getvalue().splitlines()


def test_a_log_has_a_line_for_every_epoch_and_none_between_that_comes_soon():
    lines = lines_of()
    assert lines[:2] == ["adam on digits", "compiled in 3.2 s"]
    assert [text.split()[1] for text in lines[2:-1]] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert lines[2] == (
        "epoch 1/5  step 20/100  loss 0.0500  accuracy 19.80%  eval loss 0.1000  lr 0.001  0:06 left  13 it/s"
    )
    assert lines[-1] == "done"


def test_a_log_has_every_record_where_they_are_slow():
    assert [text.split()[1] for text in lines_of(pause=6, steps=40, epochs=2, chunk=4)[2:-1]] == [
        "0.60/2",
        "1/2",
        "1.60/2",
        "2/2",
    ]


def test_the_last_record_is_printed_even_if_it_came_soon():
    lines = lines_of(steps=64, epochs=1, chunk=4, watch=lambda step: None)
    assert any("step 64/64" in text for text in lines)
    clock, stream = Clock(), io.StringIO()
    progress = make_progress("lines", stream, clock)
    progress.start(None, 0, None, "")
    progress.record({"step": 7, "epoch": 0.7, "loss": 0.5}, ["loss"])
    assert stream.getvalue() == ""
    progress.close("interrupted")
    assert stream.getvalue().splitlines() == ["epoch 0.70  step 7  loss 0.5000", "interrupted"]


def test_a_log_is_not_silent_for_long():
    clock, stream = Clock(), io.StringIO()
    progress = make_progress(True, stream, clock)
    progress.start(1000, 0, 1, "")
    for step in range(1, 200):
        clock.now += 1.0
        progress.update(step, step / 1000, {"loss": 1.0})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "epoch 0.06/1  step 60/1000  loss 1.0000  15:40 left  1.0 it/s"


# The speed ---------------------------------------------------------------------------------------


def test_the_speed_leaves_out_compilation_and_the_steps_of_an_earlier_run():
    clock, stream = Clock(), Terminal()
    progress = make_progress(True, stream, clock)
    progress.start(1000, 500, 10, "")
    clock.now += 60
    progress.compiled(60)
    progress.update(505, 5.05, {})  # the first steps may have run while the time of the compilation was taken
    assert "it/s" not in stream.shown()[-1]
    clock.now += 1
    progress.update(515, 5.15, {})
    assert "10 it/s" in stream.shown()[-1]
    assert "0:48 left" in stream.shown()[-1]


def test_the_speed_follows_changes_smoothly():
    speed = Speed(0, 0.0)
    for i in range(1, 101):
        speed = speed.at(100 * i, 1.0 * i)
    assert speed.rate == pytest.approx(100)
    faster = speed.at(10_000 + 200, 101.0)
    assert 100 < faster.rate < 130
    for i in range(2, 31):
        faster = faster.at(10_000 + 200 * i, 100.0 + i)
    assert faster.rate == pytest.approx(200, rel=0.01)


def test_a_clock_that_stands_or_runs_back_does_no_harm():
    speed = Speed(0, 10.0).at(10, 11.0)
    assert speed.at(20, 11.0) is speed
    assert speed.at(20, 5.0) is speed
    assert speed.at(10, 20.0) is speed


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status(10, 100, rate=0.5), "3:00 left  2.0 s/it  epoch 0  step 10/100"),
        (Status(10, 10**6, rate=12.3), "22:35:00 left  12 it/s  epoch 0  step 10/1000000"),
        (Status(10, None, 2.0, 8.0, rate=1234.5), "1,234 it/s  epoch 2/8  step 10"),
        (Status(10, None, 2.5, None, {"loss": 0.5}), "loss 0.5000  epoch 2.50  step 10"),
        (Status(0, 0), "epoch 0  step 0"),
    ],
)
def test_a_status_reads_as(status, expected):
    assert line(status) == expected


def test_updates_are_drawn_at_most_ten_times_a_second():
    clock, stream = Clock(), Terminal()
    progress = make_progress(True, stream, clock)
    progress.start(10**6, 0, 1, "")
    before = stream.getvalue().count("\r")
    for step in range(1, 1001):
        clock.now += 0.001
        progress.update(step, 0.0, {})
    assert 8 <= stream.getvalue().count("\r") - before <= 11


# What breaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BrokenPipeError("closed"), ValueError("I/O operation on closed file")])
def test_a_broken_stream_is_reported_once_and_stops_nothing(error):
    class Broken(Terminal):
        writes = 0

        def write(self, text):
            self.writes += 1
            if self.writes > 4:
                raise error
            return super().write(text)

    clock, stream = Clock(), Broken()
    with pytest.warns(RuntimeWarning, match="the progress display failed with") as caught:
        train(make_progress(True, stream, clock), clock)
    assert len(caught) == 1
    assert stream.writes == 5


def test_a_closed_or_missing_stream_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    stream.close()
    with pytest.warns(RuntimeWarning, match="closed file"):
        train(make_progress(True, stream), Clock())
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.warns(RuntimeWarning, match="the progress display failed"):
        train(make_progress(True), Clock())


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    make_progress(True, stream, Clock()).start(10, 0, 1, "title")
    assert stream.getvalue() == "title\n"


@pytest.mark.parametrize("kind", [False, None])
def test_silence(kind, capsys):
    train(make_progress(kind), Clock())
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_after_the_end():
    stream = Terminal()
    progress = make_progress("lines", stream)
    progress.close("done")
    progress.close("done")
    progress.note("late")
    assert stream.getvalue() == "done\n"


@pytest.mark.parametrize("kind", ["widget", 1, 3.0, object()])
def test_an_unknown_display_is_an_error(kind):
    with pytest.raises(TypeError, match=r"fit: progress=.* was given, True, False, 'terminal', .* was expected"):
        make_progress(kind)


# tqdm --------------------------------------------------------------------------------------------


class FakeBar:
    def __init__(self):
        self.n, self.postfix, self.notes, self.closed = 0, None, [], False

    def update(self, n):
        self.n += n

    def set_postfix(self, values):
        self.postfix = values

    def write(self, text):
        self.notes.append(text)

    def close(self):
        self.closed = True


def test_a_bar_is_moved_by_what_was_done():
    clock, bar = Clock(), FakeBar()
    train(make_progress(bar, clock=clock), clock)
    assert bar.n == 100
    assert bar.postfix == {
        "loss": "0.0100",
        "accuracy": "99.01%",
        "eval loss": "0.0200",
        "lr": "0.001",
    }
    assert bar.notes == ["adam on digits", "compiled in 3.2 s", "done"]
    assert bar.closed


def test_tqdm_itself():
    tqdm = pytest.importorskip("tqdm")
    clock, stream = Clock(), io.StringIO()
    bar = tqdm.tqdm(file=stream, ncols=100)
    progress = make_progress(bar, clock=clock)
    progress.start(100, 60, 5, "")
    assert (bar.total, bar.n, bar.initial) == (100, 60, 60)
    clock.now += 1
    progress.update(100, 5.0, {"loss": 0.5})
    progress.close("")
    assert "100/100" in stream.getvalue()
    assert "loss=0.5000" in stream.getvalue()


# Notebooks ---------------------------------------------------------------------------------------


class FakeIPython(types.ModuleType):
    """Just enough of IPython: a shell of a class by name, and displays that can be updated."""

    def __init__(self, shell, module="ipykernel.zmqshell"):
        super().__init__("IPython")
        self.get_ipython = type(shell, (), {"__module__": module})
        self.shown = []
        self.display = types.ModuleType("IPython.display")
        self.display.display = self.show

    def show(self, bundle, raw, display_id):
        assert raw
        assert display_id
        self.shown.append([bundle])
        return types.SimpleNamespace(update=lambda bundle, raw: self.shown[-1].append(bundle))


@pytest.fixture
def ipython(monkeypatch):
    def install(*args):
        module = FakeIPython(*args)
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", module.display)
        return module

    return install


@pytest.mark.parametrize("shell", [("ZMQInteractiveShell",), ("Shell", "google.colab._shell")])
def test_a_notebook_has_one_display_that_is_updated(ipython, shell):
    module, clock, stream = ipython(*shell), Clock(), Terminal()
    progress = make_progress(True, stream, clock)
    train(progress, clock, close=False)
    (states,) = module.shown
    assert "compiling…" in states[1]["text/html"]
    live = states[-1]
    assert "width:100.0%" in live["text/html"]
    assert "it/s" in live["text/html"]
    assert live["text/html"].count("<tr>") == 10
    assert "50.00%" not in live["text/html"]
    assert live["text/plain"].splitlines()[2].split()[0] == "epoch"
    progress.close("done")
    assert len(module.shown) == 1
    last = states[-1]
    assert last["text/plain"].endswith("done")
    assert "it/s" not in last["text/html"]
    assert "<b>done</b>" in last["text/html"]
    assert stream.getvalue() == ""


def test_ipython_in_a_terminal_is_a_terminal(ipython):
    module, stream = ipython("TerminalInteractiveShell"), Terminal()
    make_progress(True, stream, Clock()).start(10, 0, 1, "title")
    assert module.shown == []
    assert stream.shown() == ["title", "compiling…"]


def test_html_is_escaped(ipython):
    module = ipython("ZMQInteractiveShell")
    progress = make_progress(True, clock=Clock())
    progress.start(10, 0, 1, HOSTILE)
    progress.note(HOSTILE)
    progress.update(1, 0.1, {HOSTILE: 1.0})
    progress.record({"step": 1, HOSTILE: 1.0}, [HOSTILE])
    progress.close(HOSTILE)
    (states,) = module.shown
    assert all("<img" not in state["text/html"] for state in states)
    assert states[-1]["text/html"].count("&lt;img") == 4
    assert "&lt;img src=x onerror=alert(1)&gt; 1.0000" in states[-2]["text/html"]


def test_a_long_table_in_a_notebook_stays_short(ipython):
    module, clock = ipython("ZMQInteractiveShell"), Clock()
    train(make_progress(True, clock=clock), clock, steps=4000, epochs=100)
    assert module.shown[0][-1]["text/html"].count("<tr>") == 25


NOTEBOOK = """
import time
from jopt.train.progress import make_progress
progress = make_progress(True)
progress.start(3, 0, 1, "adam on digits")
for step in (1, 2, 3):
    time.sleep(0.12)
    progress.update(step, step / 3, {"loss": 1 / step})
progress.record({"step": 3, "epoch": 1.0, "loss": 1 / 3, "<b>": 1.0}, ["step", "epoch", "loss", "<b>"])
progress.close("trained")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_in_a_real_notebook():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert output.data["text/plain"].splitlines()[-1] == "trained"
    assert "<b>trained</b>" in output.data["text/html"]
    assert "&lt;b&gt;" in output.data["text/html"]
