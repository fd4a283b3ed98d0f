"""`run`: a recipe from flags, started and followed until it ends."""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.cli.answers import BadInput, json_help, print_json
from toolkit.cli.follow import ENDED, follow, how_to
from toolkit.cli.parser import completes
from toolkit.cli.recipes import Recipe, recipes
from toolkit.flags import add_flags, flags, from_flags
from toolkit.runs.roots import checked_name, root_of

STARTED = ("run", "folder")


def fill(parser: argparse.ArgumentParser) -> None:
    """One subcommand a recipe, with a flag for each of its fields and for where it runs."""
    from toolkit.launch import Local

    subparsers = parser.add_subparsers(metavar="RECIPE", title="recipes", required=True)
    for name, recipe in recipes().items():
        command = subparsers.add_parser(name, help=recipe.title, description=recipe.title)
        add_flags(command.add_argument_group("recipe"), recipe.flags)
        flags(command.add_argument_group("where"), Local)
        start = command.add_argument_group("start")
        file = start.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe.json to start from; flags change it")
        completes(file, "file")
        start.add_argument("--name", help="name of the run (default: made of the date and a word)")
        start.add_argument("--resume", action="store_true", help="go on with the run of this --name")
        root = start.add_argument("--root", type=Path, metavar="DIR", help="folder above runs/ (default: this project)")
        completes(root, "folder")
        start.add_argument("--detach", action="store_true", help="return as soon as it is started")
        start.add_argument("--json", action="store_true", help="print JSON, one object a line")
        command.epilog = (
            f"{json_help(STARTED)}; unless --detach, each step's metrics follow\nas one object with step, "
            f"and at the end one with: {', '.join(ENDED)}"
        )
        command.set_defaults(action=partial(_start, recipe))


def _start(recipe: Recipe, chosen: argparse.Namespace) -> int:
    from toolkit.launch import Local, launch

    if chosen.resume and chosen.name is None:
        raise BadInput("--resume: needs --name, the run to go on with")
    if chosen.name is not None and not chosen.resume:
        folder = (chosen.root or root_of()).resolve() / "runs" / checked_name(chosen.name)
        if folder.exists():
            raise BadInput(f"--name {chosen.name}: exists in {folder.parent}; choose another, or --resume goes on with it")
    on = from_flags(chosen, Local)
    stored = None if chosen.recipe is None else (_json(chosen.recipe), chosen.recipe)
    type_ = recipe.type
    base = None if stored is None else _read(*stored, type_)
    value = from_flags(chosen, type_, base)
    try:
        run = launch(value, on=on, name=chosen.name, resume=chosen.resume, root=chosen.root)
    except ValueError as error:
        raise BadInput(in_flags(str(error), type_)) from error
    if chosen.json:
        print_json({"run": run.id, "folder": str(run.folder)})
    else:
        print(f"Run {run.id} in {run.folder}")
    if not chosen.detach:
        return follow(run, as_json=chosen.json)
    if not chosen.json:
        print(how_to(run))
    return 0


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--recipe {path}: not JSON: {error}") from error


def _read(data: Any, path: Path, type_: type) -> Any:
    from toolkit.values import load_root

    try:
        return load_root(data, type_)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--recipe {path}: {error}") from error


def in_flags(text: str, type_: type) -> str:
    """An error about a field of a recipe, said of its flag.

    >>> in_flags("FineTune.adapters: no module", FineTune)
    '--adapters: no module'
    """
    found = re.match(rf"{type_.__name__}\.(\w+)", text)
    return text if found is None else f"--{found[1].replace('_', '-')}{text[found.end() :]}"
