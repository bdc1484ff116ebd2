"""What a fuzzer begins with gets past the first check."""

import zipfile
from pathlib import Path

import pytest

from phx._core.codec import check_frame

CORPUS = Path(__file__).resolve().parent / "corpus"


@pytest.mark.parametrize("name", ["hello", "session", "fetch", "refused"])
def test_real_frames_are_of_this_protocol(name: str) -> None:
    """Else every one of them, and what is made of it, is refused for its version. After a change of
    the protocol: tests/fuzz/seeds.py."""
    with zipfile.ZipFile(CORPUS / "frame.zip") as archive:
        data = archive.read(f"seed-{name}")
    assert check_frame(data[2:], 7, 2, 1, 4096) == "ok"


@pytest.mark.parametrize("name", ["join", "stranger"])
def test_frames_of_nodes_that_are_not_known_are_of_this_protocol(name: str) -> None:
    with zipfile.ZipFile(CORPUS / "frame.zip") as archive:
        data = archive.read(f"seed-{name}")
    assert check_frame(data[2:], 7, 2, 9, 4096) == "ok"
