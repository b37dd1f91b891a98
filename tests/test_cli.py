"""The command line, run in this process: what it prints, what it writes, and how it refuses."""

import argparse
import contextlib
import io
import json
import re
import signal
import subprocess
import sys

import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import jax
import jax.numpy as jnp
import numpy as np

import jopt
from jopt import cli, cli_about, cli_demo, cli_tasks, cli_train, data, optimizers, schedules
from jopt.models import MLP, RNN
from jopt.train import loggers

# Matplotlib 3.10 calls pyparsing by names that pyparsing 3.3 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated - use|deprecated, use):DeprecationWarning")
SHORT = ["train", "--task", "digits-mlp", "--epochs", "2", "--batch-size", "256"]


TASKS = dict(cli_tasks.TASKS)
REGULARISED = ["--optimizer", "rmsprop", "--learning-rate", "0.01", "--set", "decay=0.8", "--set", "centered=True"]
REGULARISED += ["--clip", "0.5", "--weight-decay", "0.1", "--schedule", "wsd", "--warmup", "0.2", "--seed", "3"]


@pytest.fixture(autouse=True, scope="module")
def small_models():
    """The tasks with models that compile fast; text-rnn with 4000 characters."""
    split, text = data.digits(), data.english_text()

    def digits():
        return cli_tasks.Problem(MLP((16,), 10, dropout=0.1), split[:2], split[2:4])

    def characters():
        model = RNN((8,), len(text.vocabulary), cell="simple", per_step=True, vocabulary=len(text.vocabulary))
        return cli_tasks.Problem(model, *(data.windows(ids[:4000], 20) for ids in (text.train, text.test)))

    with pytest.MonkeyPatch.context() as patch:
        for name, problem in (("digits-mlp", digits), ("text-rnn", characters)):
            patch.setitem(cli_tasks.TASKS, name, TASKS[name]._replace(problem=problem))
        yield


@pytest.fixture(scope="module")
def finished(small_models, tmp_path_factory):
    """A finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main([*SHORT, *REGULARISED, "--out", str(folder)]) == 0
    return folder, printed.getvalue()


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def refused(capsys, *words):
    """The message of a call that must end with status 2 and no traceback."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert caught.value.code == 2
    return capsys.readouterr().err


def settings(**changes):
    arguments = cli._parser().parse_args(SHORT)
    return cli_train.settings_of(argparse.Namespace(**vars(arguments) | changes))


def test_train_prints_a_line_an_epoch_and_writes_its_files(finished):
    folder, out = finished
    assert "scale_by_stddev(" in out
    assert len(re.findall(r"^epoch [12]/2 .*%", out, re.MULTILINE)) == 2
    assert "\r" not in out
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "curves.png", "history.jsonl", "test.json"]
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"step", "loss", "accuracy", "eval_loss", "eval_accuracy", "learning_rate"} <= rows[0].keys()
    assert rows[1]["loss"] < rows[0]["loss"]
    assert json.loads((folder / "test.json").read_text())["accuracy"] == pytest.approx(rows[-1]["eval_accuracy"])
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_config_repeats_its_run_bitwise(finished, tmp_path, capsys):
    folder, _ = finished
    assert cli.main(["train", "--config", str(folder / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert without_seconds(history(folder)) == without_seconds(history(tmp_path / "again"))
    assert (folder / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_words_win_over_the_config_and_no_out_writes_nothing(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, first = finished
    assert cli.main(["train", "--config", str(folder / "config.json"), "--seed", "4", "--epochs", "1"]) == 0
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr().out
    first_loss, again = (re.search(r"epoch 1/\d .*?  loss (\S+)", text)[1] for text in (first, out))
    assert first_loss != again


def test_the_character_model_reports_perplexity(tmp_path, capsys):
    words = ["train", "--task", "text-rnn", "--epochs", "2", "--optimizer", "adam", "--learning-rate", "0.02"]
    assert cli.main([*words, "--out", str(tmp_path / "text")]) == 0
    assert "test perplexity" in capsys.readouterr().out
    rows = history(tmp_path / "text")
    assert rows[1]["eval_perplexity"] == pytest.approx(np.exp(rows[1]["eval_loss"]), rel=1e-5)
    assert rows[1]["eval_perplexity"] < rows[0]["eval_perplexity"]


def test_a_folder_with_another_run_is_kept_unless_told(tmp_path, capsys):
    (tmp_path / "history.jsonl").write_text("precious")
    (tmp_path / "notes.txt").write_text("mine")
    message = refused(capsys, *SHORT, "--out", str(tmp_path))
    assert "history.jsonl" in message
    assert "--overwrite" in message
    assert (tmp_path / "history.jsonl").read_text() == "precious"
    assert cli_train._folder(tmp_path, overwrite=True, resume=False) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_out_that_cannot_be_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, *SHORT, "--out", str(tmp_path / "file"))


def test_ctrl_c_ends_after_the_chunk_with_files_written(tmp_path, capsys, monkeypatch, request):
    # A job started in the background inherits an ignored SIGINT; a terminal's does not.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    log = loggers.JSONL.log

    def log_and_interrupt(self, values, step):
        log(self, values, step)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loggers.JSONL, "log", log_and_interrupt)
    assert cli.main([*SHORT, "--epochs", "5", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "interrupted by Ctrl-C" in out
    assert "test accuracy" in out
    assert len(history(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "curves.png").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_is_resumed_where_its_checkpoint_is(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steady = [*SHORT, "--schedule", "constant"]
    assert cli.main([*steady, "--out", str(whole), "--epochs", "4"]) == 0
    assert cli.main([*steady, "--out", str(parts), "--checkpoint"]) == 0
    assert cli.main(["train", "--resume", "--out", str(parts), "--epochs", "4"]) == 0
    assert "resumed at step" in capsys.readouterr().out
    assert without_seconds(history(parts)) == without_seconds(history(whole))
    assert (parts / "test.json").read_text() == (whole / "test.json").read_text()


@pytest.mark.parametrize("flag", ["--resume", "--checkpoint"])
def test_a_checkpoint_needs_a_folder(flag, capsys):
    with pytest.raises(SystemExit):
        cli.main([*SHORT, flag])
    assert f"{flag} was given without --out" in capsys.readouterr().err


def test_early_stopping_holds_out_training_examples_not_the_test_set(tmp_path, capsys):
    words = ["--epochs", "60", "--early-stop", "2", "--optimizer", "sgd", "--learning-rate", "0.0"]
    assert cli.main([*SHORT, *words, "--batch-schedule", "64:256", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "10% of the training examples are held out" in out
    assert len(history(tmp_path / "run")) == 3  # a rate of 0 never improves on the first
    assert "parameters of the best record" in out


def test_lr_find_puts_its_rate_into_the_config(tmp_path, capsys):
    assert cli.main([*SHORT, "--lr-find", "--out", str(tmp_path / "run")]) == 0
    rate = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["learning_rate"]
    assert 1e-5 < rate < 1
    assert (tmp_path / "run" / "lr_find.png").exists()


def test_a_run_that_diverges_stops_and_says_so(tmp_path, capsys):
    words = ["--optimizer", "sgd", "--learning-rate", "1e30", "--schedule", "constant", "--epochs", "9"]
    assert cli.main([*SHORT, *words, "--out", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert "steps in a row were not finite" in message
    assert "--clip 1" in message
    assert len(history(tmp_path / "run")) < 9


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--task", "digits-mlp", "text-rnn"]),
        (["--task", "digits"], ["'digits'", "digits-mlp"]),
        ([*SHORT[1:], "--optimizer", "adamm"], ["adamm", "adamw", "jopt list"]),
        ([*SHORT[1:], "--optimizer", "lion"], ["lion", "--learning-rate 0.01"]),
        ([*SHORT[1:], "--set", "beta=1"], ["beta=1", "b1=0.9", "eps_root", "Choose one"]),
        ([*SHORT[1:], "--set", "b1"], ["--set b1 ", "NAME=VALUE"]),
        ([*SHORT[1:], "--set", "learning_rate=1"], ["Use --learning-rate"]),
        ([*SHORT[1:], "--set", "b1=1.5"], ["b1=1.5", "[0, 1)"]),
        ([*SHORT[1:], "--set", "nesterov=1"], ["nesterov=1", "True or False"]),
        ([*SHORT[1:], "--set", "weight_decay=1", "--weight-decay", "1"], ["both"]),
        ([*SHORT[1:], "--set", "mu_dtype=float99"], ["float99"]),
        ([*SHORT[1:], "--clip", "0"], ["--clip", "'0'", "(0, inf)"]),
        ([*SHORT[1:], "--learning-rate", "nan"], ["--learning-rate", "'nan'", "[0, inf)"]),
        ([*SHORT[1:], "--learning-rate", "fast"], ["'fast'", "[0, inf)"]),
        ([*SHORT[1:], "--warmup", "1"], ["'1'", "[0, 1)"]),
        ([*SHORT[1:], "--epochs", "0"], ["--epochs", "'0'", "whole number"]),
        ([*SHORT[1:], "--batch-size", "5000"], ["--batch-size 5000", "1437", "smaller batch"]),
        ([*SHORT[1:], "--seed", "-1"], ["--seed"]),
        (["--config", "nowhere.json"], ["nowhere.json", "Check the path"]),
    ],
    ids=lambda v: " ".join(v[-2:]) if v and isinstance(v[0], str) and v[0].startswith("--") else None,
)
def test_bad_arguments_are_named(words, parts, capsys):
    message = refused(capsys, "train", *words)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": {"tsk": 1}}'])
def test_a_file_that_is_no_config_is_named(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert "not that of a config.json" in refused(capsys, "train", "--config", str(tmp_path / "config.json"))


@pytest.mark.parametrize("words", [[*SHORT, "--out"], ["demo", "--out"]])
def test_out_without_matplotlib_is_refused_before_training(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "jopt[plot]"' in refused(capsys, *words, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["train", "--task", "digits-cnn"], ["demo"]])
def test_a_missing_extra_is_named(words, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(cli_demo, "CHAINS", {"digits-cnn": {}})
    assert 'pip install "jopt[data]"' in refused(capsys, *words)


def test_set_reads_values_as_python_does():
    words = ("b1=0.95", "nesterov=True", "mu_dtype=bfloat16", "where=**/kernel")
    expected = {"b1": 0.95, "nesterov": True, "mu_dtype": "bfloat16", "where": "**/kernel"}
    assert cli_train.keywords_of("adamw", words) == expected


def test_weight_decay_is_the_optimizers_own_argument_if_it_has_one():
    tx, note = cli_train.chain_of(settings(weight_decay=0.1, schedule="constant"), 10)
    assert tx == jopt.adamw(3e-3, weight_decay=0.1)
    assert "adamw's own" in note


def test_weight_decay_is_decoupled_and_of_kernels_otherwise():
    given = settings(optimizer="momentum", learning_rate=0.5, weight_decay=0.1, schedule="constant", clip=1.0)
    tx, note = cli_train.chain_of(given, 10)
    assert "decoupled" in note
    params = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["layer"]["bias"], 0)


@pytest.mark.parametrize("name", sorted(set(optimizers.__all__) - cli_train.ASK_MORE.keys()))
def test_every_optimizer_takes_every_option(name):
    given = settings(optimizer=name, learning_rate=0.01, weight_decay=0.1, clip=1.0, schedule="cosine")
    tx, _ = cli_train.chain_of(given, 10)
    params = {"layer": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    state = jax.eval_shape(tx.init, params)

    def update(grads, state, params):
        # What `fit` gives; who does not ask for them does not get them.
        return tx.update(grads, state, params, value=jnp.ones(()), value_fn=lambda p: jnp.sum(p["layer"]["bias"]))

    new = jax.eval_shape(update, params, state, params)[1]
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.leaves(new) == jax.tree.leaves(state)


@pytest.mark.parametrize("name", cli_train.ASK_MORE)
def test_an_optimizer_that_asks_for_more_is_an_error_that_says_for_what(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([*SHORT, "--optimizer", name, "--learning-rate", "0.1"])
    assert cli_train.ASK_MORE[name] in capsys.readouterr().err


@pytest.mark.parametrize("name", cli_train.SCHEDULES)
@pytest.mark.parametrize("warmup", [None, 0.0, 0.25])
def test_a_schedule_peaks_at_the_learning_rate_and_ends_with_the_run(name, warmup):
    rate = cli_train.rate_of(settings(schedule=name, learning_rate=0.4, warmup=warmup), 100)
    values = [float(rate(step)) if callable(rate) else rate for step in range(100)]
    assert max(values) == pytest.approx(0.4, rel=0.01)
    rising = round(100 * (cli_train.SCHEDULES[name].warmup if warmup is None else warmup))
    assert values[rising] == pytest.approx(0.4, rel=0.01)
    assert np.all(np.diff(values[: rising + 1]) > 0)
    assert np.all(np.diff(values[rising:]) <= 0)
    if name not in ("constant", "inverse-sqrt"):
        assert values[-1] < 0.06 * 0.4


def test_the_default_chain_of_a_short_run_is_defined():
    for steps in (1, 2, 3):
        for name in cli_train.SCHEDULES:
            cli_train.chain_of(settings(schedule=name), steps)


def test_list_shows_every_name_with_a_line(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert set(optimizers.__all__) <= set(shown)
    assert set(jopt.rules.__all__) <= set(shown)
    assert set(schedules.__all__) - {"Schedule"} <= set(shown)
    assert {"chain", "partition", "accumulate", "ema", "clip_by_global_norm", "add_decayed_weights"} <= set(shown)
    assert all(len(line) > 10 for line in shown.values())
    assert set(cli_about.names()["Optimizers"]) == set(optimizers.__all__)


def test_doctor_shows_versions_and_devices(capsys, monkeypatch):
    real = cli_about.metadata.version

    def version(name):
        if name == "tensorboardX":
            raise cli_about.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(cli_about.metadata, "version", version)
    assert cli.main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["jax"] == jax.__version__
    assert lines["devices"] == f"{len(jax.devices())} × {jax.devices()[0].device_kind}"
    assert lines["tensorboardX"] == 'not installed; pip install "jopt[tb]"'


def small_demo(monkeypatch, target, chains):
    monkeypatch.setattr(cli_demo, "TOOLKIT", "digits-mlp")
    monkeypatch.setitem(cli_tasks.TASKS, "digits-mlp", cli_tasks.TASKS["digits-mlp"]._replace(epochs=2, target=target))
    monkeypatch.setattr(cli_demo, "CHAINS", {"digits-mlp": chains})


def test_the_demo_ends_with_a_table_and_a_picture(tmp_path, capsys, monkeypatch):
    small_demo(monkeypatch, 0.0, {"adamw": cli_demo.clipped_adamw, "lion": cli_demo.averaged_lion})
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == 3
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"


def test_the_demo_fails_below_its_target_unless_quick(tmp_path, capsys, monkeypatch):
    small_demo(monkeypatch, 1.01, {"adamw": cli_demo.clipped_adamw})
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().out.count("FAIL") == 2
    assert cli.main(["demo", "--quick"]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_demo_has_three_chains_for_each_digit_task():
    assert set(cli_demo.CHAINS) == {"digits-mlp", "digits-cnn", "digits-rnn"}
    for chains in cli_demo.CHAINS.values():
        assert len({repr(chain(100)) for chain in chains.values()}) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("task", ["digits-mlp", "digits-cnn", "digits-resnet", "digits-rnn"])
def test_the_default_chain_reaches_the_target(task, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cli_tasks.TASKS, task, TASKS[task])
    assert cli.main(["train", "--task", task, "--out", str(tmp_path / task)]) == 0
    assert history(tmp_path / task)[-1]["eval_accuracy"] >= cli_tasks.TASKS[task].target


def test_python_m_jopt_is_the_command():
    done = subprocess.run([sys.executable, "-m", "jopt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"jopt {jopt.__version__}"
