"""A project with runs, made once."""

from pathlib import Path

import pytest

from tests.laws.command_line import work
from toolkit.launch import InProcess, launch


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished and one failed run, `good` and `bad`."""
    place = tmp_path_factory.mktemp("project")
    launch(work, 6.0, on=InProcess(), root=place, name="good")
    with pytest.raises(ArithmeticError):
        launch(work, -1.0, on=InProcess(), root=place, name="bad")
    return place
