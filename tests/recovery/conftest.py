"""The loops of tests/api do here, too."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.api.conftest import run_once, uvloop_warm

__all__ = ["folders", "lost", "run_once", "uvloop_warm"]


@pytest.fixture(scope="session")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of nodes that were killed; read them, and change nothing."""
    from .test_recover import lost_cluster

    root = tmp_path_factory.mktemp("lost")
    asyncio.run(lost_cluster(root, values=20, checkpoint_at=9))
    return root


@pytest.fixture
def folders(lost: Path, tmp_path: Path) -> list[Path]:
    """Copies of them."""
    return [Path(shutil.copytree(lost / f"node{n}", tmp_path / f"node{n}")) for n in (1, 2, 3)]
