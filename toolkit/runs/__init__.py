"""The run folder: whatever trains writes it, whatever watches reads it. Knows no family of methods.

`runs()` lists them; `Run.attach(id)` opens one, also of another notebook or of yesterday.
"""

from toolkit.runs.context import Context, current
from toolkit.runs.control import perform_call, read_commands, send
from toolkit.runs.events import EventWriter, read_events
from toolkit.runs.listing import runs
from toolkit.runs.roots import root_of
from toolkit.runs.run import Result, Run, RunFailed, RunInactive
from toolkit.runs.series import metrics, read_series
from toolkit.runs.state import State, read_state

__all__ = [
    "Context",
    "EventWriter",
    "Result",
    "Run",
    "RunFailed",
    "RunInactive",
    "State",
    "current",
    "metrics",
    "perform_call",
    "read_commands",
    "read_events",
    "read_series",
    "read_state",
    "root_of",
    "runs",
    "send",
]
