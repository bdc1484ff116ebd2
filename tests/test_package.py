"""The package as its users see it: every public name is there, and importing it costs little."""

import subprocess
import sys
from importlib import metadata

import pytest

import phx


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", phx.__all__)
def test_every_public_name_is_there(name):
    assert getattr(phx, name) is not None
    assert name in dir(phx)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = phx.Nobody


def test_star_import_brings_the_public_names():
    assert run("from phx import *; print(Node.__name__, Config.__name__)") == "Node Config\n"


def test_import_alone_loads_nothing_native():
    found = run("import sys, phx; print([m for m in sys.modules if m.startswith('phx._core')])")
    assert found == "[]\n"


def test_version_is_that_of_the_distribution():
    try:
        assert metadata.version("phx-paxos") == phx.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("compiled in place, not installed")
