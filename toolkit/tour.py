"""`make tour`: run the first notebook as a job and leave what it made under runs/tour/."""

import sys
from collections.abc import Sequence

from rich.console import Console

from toolkit.launch.bundle import export, read_job
from toolkit.launch.notebook import run_job
from toolkit.launch.parameters import parse_parameters
from toolkit.runs.roots import root_of

NOTEBOOK = "notebooks/00-start-here.ipynb"


def main(assignments: Sequence[str] | None = None) -> int:
    """Export the notebook, run it with `name=value` parameters, and say where everything is; 0 if it ran to its end."""
    root = root_of()
    out = root / "runs" / "tour"
    console = Console(highlight=False, soft_wrap=True)
    job = export(root / NOTEBOOK, to="local", out=out / "job")
    parameters = parse_parameters(read_job(job).parameters, sys.argv[1:] if assignments is None else assignments)
    with console.status("starting") as status:

        def echo(line: str) -> None:
            console.print(line, markup=False)
            status.update(line.strip()[: console.width - 4].replace("[", "\\["))

        failed = run_job(job, parameters=parameters, echo=echo, out=out)
    if not failed:
        console.print(
            f"\nThe tour is done. What it left under {out}:\n"
            "  00-start-here.html   the page: open it in any browser, it needs no network\n"
            "  00-start-here.ipynb  the executed notebook\n"
            "  job/                 the bundle that ran: python -m toolkit job run runs/tour/job\n"
            "To go on in JupyterLab: make lab",
            markup=False,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
