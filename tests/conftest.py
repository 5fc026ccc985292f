"""What a test needs and does not find makes it skip with a sentence; in CI, where all of it is installed, it fails."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from neurons import radosgw as server
from neurons.radosgw import Radosgw


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Radosgw]:
    """A real S3 server for all tests; each makes buckets and users of its own in it."""
    if absent := server.missing():
        pytest.skip(f"{', '.join(absent)} not found: `make radosgw` installs the S3 server")
    with server.start(tmp_path_factory.mktemp("radosgw")) as running:
        yield running
