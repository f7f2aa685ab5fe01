"""The command line of the recipes, described."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from fxsplit._errors import near_matches
from recipes._settings import Settings
from recipes.training import Runtime

PRESETS = "paper, released or small"
_NO_OPTIONS = ("command", "row", "place", "pattern")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m recipes", description="The paper's experiments, one command each.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(commands)
    _list(commands)
    _show(commands)
    _run(commands)
    _evaluate(commands)
    _table(commands)
    _plot(commands)
    return top


def unknown(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """Say what is wrong with arguments that a command does not take.

    Args:
        options: Those that it takes.
        rest: The others.
    """
    name = next((each.partition("=")[0] for each in rest if each.startswith("-")), None)
    if name is None:
        text = f"{options.command} takes no {rest[0]!r}."
    else:
        known = [f"--{each.replace('_', '-')}" for each in vars(options) if each not in _NO_OPTIONS]
        text = f"{options.command} has no option {name!r}.{near_matches(name, known, limit=1)}"
    return f"{text} All that it takes: python -m recipes {options.command} --help."


def _demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = Settings()
    demo = commands.add_parser(
        "demo",
        help="train four systems on handwritten digits and compare them on one page",
        description="Train a single dense network, a full ensemble, a TreeNet and NeuroTrails on scikit-learn's "
        "handwritten digits, and write tables and a results page.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=defaults.out, help="folder for the results")
    demo.add_argument("--seeds", type=int, default=defaults.seeds, help="number of training seeds")
    demo.add_argument("--epochs", type=int, default=defaults.epochs, help="epochs of a dense network")
    demo.add_argument("--heads", type=int, default=defaults.heads, help="heads of every ensemble, M")
    demo.add_argument("--sparsity", type=float, default=defaults.sparsity, help="sparsity of NeuroTrails, S")
    demo.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="runs trained side by side")
    demo.add_argument("--quick", action="store_true", help="a smoke test of seconds, whose numbers mean nothing")


def _list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("list", help="list the rows of the paper's tables and figures")
    command.add_argument("pattern", nargs="?", default="*", help="glob, table or part of a name: 'table2', '*treenet*'")


def _show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("show", help="show a row: its settings, as --set takes them, and the paper's numbers")
    command.add_argument("row")
    command.add_argument("--preset", default="small", help=f"{PRESETS}, by default small")
    _settings(command, "change a setting; NAME=*X multiplies it")


def _run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = Runtime()
    command = commands.add_parser(
        "run",
        help="train and measure a row",
        description="Train and measure a row. Finished seeds are skipped, so the same command goes on after an "
        "interruption (with --resume in the middle of a training). Several GPUs: torchrun --nproc-per-node 4 -m "
        "recipes run ROW.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("row")
    command.add_argument("--preset", default="small", help=PRESETS)
    command.add_argument("--seeds", type=int, default=1, help="number of training seeds: 0, 1, ...")
    command.add_argument("--first-seed", type=int, default=0, help="the first of them")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; NAME=*X multiplies it"
    )
    command.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets")
    command.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs")
    command.add_argument("--resume", action="store_true", help="go on with an unfinished training, bit for bit")
    command.add_argument("--checkpoint-minutes", type=float, default=defaults.checkpoint_minutes, help="between saves")
    command.add_argument("--device", help="where to compute, such as cuda:1; by default the GPU if there is one")
    command.add_argument("--workers", type=int, default=defaults.workers, help="processes that fetch data")
    command.add_argument("--compile", action="store_true", help="compile networks with torch.compile")
    command.add_argument("--deterministic", action="store_true", help="refuse algorithms whose results vary")
    command.add_argument("--tensorboard", action="store_true", help="write TensorBoard's event files too")
    command.add_argument("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases too")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure a finished run further: corrupted images, other data sets, downstream tasks",
        description="Measure a finished run on more than its test part; a page and metrics.json are written into its "
        "folder.",
    )
    command.add_argument("row")
    command.add_argument("--preset", default="small", help=PRESETS)
    _settings(command, "what the run was given")
    command.add_argument("--seeds", type=int, default=1, help="number of seeds")
    command.add_argument("--first-seed", type=int, default=0, help="the first of them")
    command.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets")
    command.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs")
    command.add_argument("--state", choices=("last", "best"), default="last", help="best: on the validation part")
    command.add_argument("--device", help="where to compute; by default the GPU if there is one")
    images = command.add_argument_group("image classifiers")
    images.add_argument(
        "--corruptions", nargs="*", metavar="NAME", help="corrupt the test images; without names in all fifteen ways"
    )
    images.add_argument("--severities", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N", help="1 to 5")
    images.add_argument(
        "--corrupted-from", type=Path, metavar="DIR", help="read them from CIFAR-C or ImageNet-C in this folder instead"
    )
    images.add_argument("--outside", nargs="+", default=[], metavar="DATA", help="data sets to tell from the test set")
    images.add_argument("--sketch", action="store_true", help="measure on ImageNet-Sketch")
    images.add_argument("--modules", nargs="+", default=[], metavar="PATH", help="compare features in heads by CKA")
    images.add_argument("--images", type=int, metavar="N", help="only so many test images")
    images.add_argument("--workers", type=int, default=0, help="processes that fetch images")
    text = command.add_argument_group("language models")
    text.add_argument(
        "--tasks", nargs="*", metavar="TASK", help="run tasks of lm-evaluation-harness; without names those of Table 5"
    )
    text.add_argument("--limit", type=int, metavar="N", help="only so many examples of each")


def _table(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("table", help="gather finished runs into a table of the paper")
    command.add_argument("place", help="2, table2, figure6, ...")
    command.add_argument("--preset", default="small", help=PRESETS)
    _settings(command, "what the runs were given")
    command.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs")
    command.add_argument("--state", choices=("last", "best"), default="last", help="best: on the validation part")
    command.add_argument("--vote", choices=("prob", "logit"), default="prob", help="what the heads average")
    command.add_argument("--format", choices=("text", "markdown", "json"), default="text")


def _plot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("plot", help="draw a figure of the paper from finished runs")
    command.add_argument("place", help="figure3, figure5, figure6 or figure7")
    command.add_argument("--preset", default="small", help=PRESETS)
    _settings(command, "what the runs were given")
    command.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs")
    command.add_argument("--file", type=Path, help="PNG to write; by default in the folder of the runs")


def _settings(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=help)
