"""Interactive views of values and of run folders."""

from widgets.run_monitor import RunMonitor

__all__ = ["RunMonitor"]
