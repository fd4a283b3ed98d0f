"""Interactive views of values and of run folders."""

from widgets.chat import Chat
from widgets.form import Form
from widgets.run_monitor import RunMonitor

__all__ = ["Chat", "Form", "RunMonitor"]
