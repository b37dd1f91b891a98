"""The command line: `jopt train`, `jopt demo`, `jopt list`, `jopt doctor`."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jopt import __version__, cli_about, cli_demo, cli_train
from jopt.cli_tasks import TASKS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a run that failed, 2 bad arguments.

    Args:
        argv: the words after `jopt`; None takes the process's own.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? for lines and signs
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        if arguments.command == "train" and arguments.resume and arguments.out and arguments.task is None:
            arguments.config = arguments.config or arguments.out / "config.json"
        if arguments.command == "train" and arguments.config is not None:
            # The words of the file come first, so that those of the command line win.
            recorded = cli_train.words_of_config(arguments.config)
            arguments = parser.parse_args(["train", *recorded, *words[words.index("train") + 1 :]])
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `jopt list | head`; without this, Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (cli_train.UsageError, ImportError) as error:  # a missing extra: the message has the install line
        parser.exit(2, f"jopt {arguments.command}: error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jopt", description="Train, compare and inspect optimizers made with jopt.")
    parser.add_argument("--version", action="version", version=f"jopt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    demo = commands.add_parser(
        "demo", help="train three digit tasks with several chains each, and a fourth with the whole toolkit"
    )
    demo.add_argument("--out", type=Path, metavar="DIR", help="save the picture there as demo.png")
    demo.add_argument("--quick", action="store_true", help="a tenth of the epochs, and no targets")
    demo.set_defaults(run=lambda a: cli_demo.demo(a.out, quick=a.quick))
    listing = commands.add_parser("list", help="every optimizer, rule, wrapper and schedule, a line each")
    listing.set_defaults(run=lambda a: cli_about.show_names())
    doctor = commands.add_parser("doctor", help="versions, devices and settings of this installation")
    doctor.set_defaults(run=lambda a: cli_about.show_installation())
    return parser


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = commands.add_parser(
        "train",
        help="train one model with one chain",
        description="Train one model with one chain. Batches that are not full are left out of an epoch.",
        epilog="\n".join(
            ["tasks:", *(f"  {name.ljust(15)}{task.title}" for name, task in TASKS.items()), "", "schedules:"]
            + [f"  {name.ljust(15)}{shape.title}" for name, shape in cli_train.SCHEDULES.items()]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--config", type=Path, metavar="FILE", help="config.json of another run: repeat it")
    train.add_argument("--task", choices=TASKS, metavar="NAME", help="what to learn: see below")
    train.add_argument("--optimizer", default="adamw", metavar="NAME", help="see `jopt list` (default: adamw)")
    train.add_argument(
        "--learning-rate", type=_number(0, math.inf), metavar="X", help="highest rate (with adamw: the task's own)"
    )
    train.add_argument(
        "--schedule",
        default="warmup-cosine",
        choices=cli_train.SCHEDULES,
        metavar="NAME",
        help="of the rate, over the whole run: see below (default: %(default)s)",
    )
    train.add_argument(
        "--warmup", type=_number(0, 1), metavar="SHARE", help="share of all steps in which the rate rises, in [0, 1)"
    )
    train.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the optimizer, as in b1=0.95"
    )
    train.add_argument("--clip", type=_number(0, math.inf, open_below=True), metavar="X", help="largest gradient norm")
    train.add_argument(
        "--weight-decay",
        type=_number(0, math.inf),
        metavar="X",
        help="the optimizer's own if it has one, else decoupled, of kernels",
    )
    train.add_argument("--epochs", type=_whole(1), metavar="N", help="(default: the task's)")
    train.add_argument("--batch-size", type=_whole(1), metavar="N", help="(default: the task's)")
    train.add_argument("--batch-schedule", metavar="A:B", help="grow the batch from A to B examples over the run")
    train.add_argument("--augment", action="store_true", help="the task's augmentation of training examples")
    train.add_argument(
        "--early-stop",
        type=_whole(1),
        metavar="N",
        help="stop after N epochs without a lower validation loss, and take the parameters of the best",
    )
    train.add_argument(
        "--validation",
        type=_number(0, 1),
        metavar="SHARE",
        help="of the training examples, held out (default: 0.1 with --early-stop, else 0: epochs show the test set)",
    )
    train.add_argument("--lr-find", action="store_true", help="take the rate that a range test suggests")
    train.add_argument("--precision", choices=("bf16", "f16"), help="compute losses in half the bits")
    train.add_argument("--tensorboard", metavar="DIR", help="write event files there")
    train.add_argument("--checkpoint", action="store_true", help="save every epoch in OUT/checkpoints")
    train.add_argument("--resume", action="store_true", help="go on with the run in OUT, and save every epoch")
    train.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of parameters, batches and dropout")
    train.add_argument("--out", type=Path, metavar="DIR", help="write history.jsonl, config.json and curves.png there")
    train.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    train.set_defaults(run=cli_train.train)


def _number(low: float, high: float, open_below: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text) if _is_number(text) else math.nan
        if not (low < value if open_below else low <= value) or not value < high:
            interval = f"{'(' if open_below else '['}{low}, {high})"
            raise argparse.ArgumentTypeError(f"{text!r} was given, a number in {interval} was expected")
        return value

    return parse


def _whole(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"{text!r} was given, a whole number in [{low}, 2**31) was expected")
        return int(text)

    return parse


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
