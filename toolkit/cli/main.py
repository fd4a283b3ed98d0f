"""`main`: which command was chosen, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import toolkit
from toolkit.cli.answers import BAD_INPUT, FAILED, INTERRUPTED, STATUSES, BadInput, program
from toolkit.cli.parser import Command, Parser
from toolkit.cli.shells import COMMAND

OURS = {"RunFailed": FAILED}
"""Exit status of errors that are reported as a text; any other of ours is bad input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `main(["systems", "--json"])`"""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == [COMMAND]:  # a shell asks what may come next
            import_module("toolkit.cli.completion").answer(arguments[1:])
            return 0
        namespace = parser_for(arguments).parse_args(arguments)
        status = namespace.action(namespace)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)
    except BadInput as error:
        return _complain(str(error), error.status)
    except ValueError as error:
        return _complain(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as error:
        if not type(error).__module__.startswith("toolkit."):
            raise
        return _complain(str(error), OURS.get(type(error).__name__, BAD_INPUT))


def _complain(text: str, status: int) -> int:
    """Bad input gets one line; the report of a failed run keeps its own."""
    print(f"{program()}: {text if status == FAILED else ' '.join(text.split())}", file=sys.stderr)
    return status


def parser_for(arguments: Sequence[str]) -> Parser:
    """The parser, with the arguments of the command that `arguments` choose; the others are named only."""
    parser = Parser(prog=program(), description=toolkit.__doc__, epilog=STATUSES)
    parser.set_defaults(action=lambda namespace: print(parser.format_help(), end="") or 0)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=f"{command.help}.", epilog=STATUSES)
        if name == chosen:
            command.fill(subparser)
    return parser


def _later(module: str) -> Callable[..., None]:
    """What fills a command's parser, imported when that command was chosen."""
    return lambda parser: import_module(f"toolkit.cli.{module}").fill(parser)


COMMANDS = {
    "run": Command(help="Start a recipe and follow it", fill=_later("run")),
    "runs": Command(help="List runs, look into one, steer it, compare them, clean up", fill=_later("runs")),
    "export": Command(help="Make a batch job of a notebook", fill=_later("export")),
    "job": Command(help="Run an exported notebook", fill=_later("job")),
    "systems": Command(help="List the published systems that are implemented", fill=_later("systems")),
    "doctor": Command(help="Say what this machine can do, and what is missing", fill=_later("doctor")),
    "completion": Command(help="Print what makes a shell complete these commands", fill=_later("completion")),
}
