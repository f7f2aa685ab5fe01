"""What each command does."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping

from fxsplit._table import text_table
from recipes._errors import RecipeError
from recipes._require import require
from recipes._settings import Settings, prepare_folder


def demo(options: argparse.Namespace) -> int:
    """Run the demo; 1 if a check failed."""
    settings = Settings(
        out=options.out,
        seeds=options.seeds,
        epochs=options.epochs,
        heads=options.heads,
        sparsity=options.sparsity,
        workers=options.workers,
    )
    from recipes import _demo  # imports every library there is: not before the arguments are fine

    return 0 if _demo.demo(settings.quick() if options.quick else settings) else 1


def list_rows(options: argparse.Namespace) -> int:
    """Print the rows that match, with the paper's main number."""
    from recipes.rows import matching

    rows = [
        [row.name, row.label, ", ".join(row.presets), _number(row.paper.accuracy or row.paper.perplexity)]
        for row in matching(options.pattern)
    ]
    print(text_table(["row", "system", "presets", "paper"], rows))
    return 0


def show(options: argparse.Namespace) -> int:
    """Print a recipe's settings by the names that --set takes, which preset they are of, and the paper's numbers."""
    from recipes.cli._folder import Choice
    from recipes.cli._report import setting
    from recipes.rows import settings_of

    choice = Choice.of(options.row, options.preset, options.set)
    row, recipe = choice.row, choice.recipe
    print(f"{choice.title}: {row.label}")
    others = " or ".join(f"--preset {name}" for name in row.presets if name != choice.preset)
    print(f"preset {choice.preset}; {others} shows the other{'s' if len(row.presets) > 2 else ''}")
    if row.note:
        print(row.note)
    published = {key: value for key, value in dataclasses.asdict(row.paper).items() if value not in (None, "")}
    print("paper: " + (", ".join(f"{key} {value}" for key, value in published.items()) or "no numbers"))
    for path in settings_of(recipe):
        print(f"  {path} = {setting(recipe, path)}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Train and measure a row with each seed."""
    seeds = _seeds(options)
    from recipes.cli._execute import execute
    from recipes.cli._folder import Choice
    from recipes.training import Runtime, deterministic, processes, raised

    choice = Choice.of(options.row, options.preset, options.set)
    runtime = Runtime(
        device=options.device,
        checkpoint_minutes=options.checkpoint_minutes,
        deterministic=options.deterministic,
        compile=options.compile,
        workers=options.workers,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
        wandb=options.wandb,
        data_root=options.data_root,
    )
    prepare_folder(options.out)
    with raised(), deterministic(runtime.deterministic), processes(runtime.device) as together:
        for seed in seeds:
            result = execute(choice, seed, options.out, runtime, together, resume=options.resume)
            if together.first:
                print(f"{choice.title} seed {seed}: {_headline(result['metrics']['last'])}")
                print(f"  {choice.folder(options.out, seed) / 'report.html'}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measure finished runs on more than their test part."""
    seeds = _seeds(options)
    from recipes.cli._evaluate import headlines, measure_more
    from recipes.cli._folder import Choice
    from recipes.cli._inputs import Questions, look_up
    from recipes.data import corruption_names
    from recipes.training import processes

    choice = Choice.of(options.row, options.preset, options.set)
    asked = Questions(
        corruptions=corruption_names() if options.corruptions == [] else options.corruptions or (),
        severities=options.severities,
        corrupted_from=options.corrupted_from,
        outside=options.outside,
        sketch=options.sketch,
        modules=options.modules,
        images=options.images,
        workers=options.workers,
        tasks=_tasks(options.tasks),
        limit=options.limit,
    )
    inputs = look_up(choice, seeds, options.out, options.data_root, options.state, asked)
    with processes(options.device) as together:
        for seed in seeds:
            page, known = measure_more(choice, seed, options.out, inputs, together.device, options.state)
            print(f"{choice.title} seed {seed}, {options.state} state")
            for line in headlines(known):
                print(f"  {line}")
            print(f"  {page}")
    return 0


def _seeds(options: argparse.Namespace) -> range:
    require(options.seeds >= 1, "seeds", "be at least 1", options.seeds)
    require(options.first_seed >= 0, "first-seed", "be at least 0", options.first_seed)
    return range(options.first_seed, options.first_seed + options.seeds)


def _tasks(given: list[str] | None) -> tuple[str, ...]:
    if given != []:
        return tuple(given or ())
    from recipes.evaluation import TABLE_5_TASKS

    return TABLE_5_TASKS


def table(options: argparse.Namespace) -> int:
    """Print a table of the paper with what was run."""
    from recipes.cli import _collect
    from recipes.cli._notes import tokenizer_note

    if options.format == "json":
        print(_collect.as_json(options.place, options.preset, options.out, options.set))
        _hint(options.place, options)
        return 0
    headers, cells = _collect.table(
        options.place, options.preset, options.out, state=options.state, vote=options.vote, changes=options.set
    )
    print(_collect.markdown(headers, cells) if options.format == "markdown" else text_table(headers, cells))
    _hint(options.place, options)
    note = tokenizer_note(options.place, options.preset, options.set)
    if note:
        print(f"\n{note}")
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw a figure of the paper from what was run."""
    from recipes.cli._plot import plot as draw

    made = draw(options.place, options.preset, options.out, options.set)
    file = options.file or options.out / f"{made.name}.png"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(made.png())
    except OSError as error:
        raise RecipeError(f"cannot write to {file}: {error.strerror}. Choose another file with --file.") from error
    print(file)
    _hint(f"figure{options.place}" if options.place.isdigit() else options.place, options)
    return 0


def _hint(place: str, options: argparse.Namespace) -> None:
    """Say on stderr which other options would show runs of rows that have none as asked for."""
    from recipes.cli._collect import without
    from recipes.cli._elsewhere import elsewhere
    from recipes.rows import of_place

    found = elsewhere(without(of_place(place), options.preset, options.out, options.set), options.out)
    if found:
        print(found, file=sys.stderr)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": demo,
    "list": list_rows,
    "show": show,
    "run": run,
    "evaluate": evaluate,
    "table": table,
    "plot": plot,
}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _headline(metrics: Mapping[str, float | None]) -> str:
    names = ("accuracy_prob", "nll_prob", "ece_prob", "perplexity_prob", "disagreement")
    return ", ".join(f"{name} {value:.4f}" for name in names if (value := metrics.get(name)) is not None)
