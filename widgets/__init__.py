"""Interactive views of values and of run folders."""

from widgets.form import Form
from widgets.run_monitor import RunMonitor

__all__ = ["Form", "RunMonitor"]
