"""The stage hosts of one agent, served in a thread for the length of a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stagehost.helpers import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path / "home")
    made.start()
    yield made
    made.stop()
