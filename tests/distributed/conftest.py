"""One pool of warm workers for all distributed tests; it ends with them, so that it costs the other tests nothing."""

from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="package")
def workers() -> Iterator[Pool]:
    """Four warm workers: `workers.run("tests.distributed.bodies:name", world=2, argument=1)` -> a result a rank."""
    pool = Pool()
    yield pool
    pool.close()
