"""What several integration tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mivra.control.running import lock_holder
from mivra.store.postgres import PostgresStore
from tests.integration.control_world import World
from tests.support import wait_until


@pytest.fixture
def world(database_url: str, store: PostgresStore, tmp_path: Path) -> Iterator[World]:
    made = World(database_url, store, tmp_path)
    yield made
    left = made.close()
    for home in tmp_path.iterdir():
        # Bots are left to the next listener on purpose; here comes none.
        holders = {lock_holder(folder) for folder in (home / "bots").glob("*") if folder.is_dir()}
        for process in made.processes(home):
            if process.pid not in holders:
                left.append(f"a second process of {process.open_files()}")
            process.kill()
        wait_until(lambda home=home: not made.processes(home))  # type: ignore[misc]
    assert not left
