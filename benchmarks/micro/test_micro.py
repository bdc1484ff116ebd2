"""The micro-benchmarks under pytest-benchmark.

    python -m pytest benchmarks/micro --benchmark-enable -k "record and encode"

Every figure is for all operations of a loop; divide by `operations` of the extra information.
"""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from suite import BENCHES

ROUNDS = 11


@pytest.mark.parametrize("name", BENCHES)
def test_micro(benchmark, tmp_path, name):
    bench = BENCHES[name]
    made = []

    def setup():
        made.clear()
        folder = tmp_path / "disk"
        shutil.rmtree(folder, ignore_errors=True)
        made.append(bench.loop(bench.count, folder))
        return (made[0],), {}

    benchmark.extra_info.update(operations=bench.count, unit=bench.unit)
    spent = benchmark.pedantic(lambda loop: loop.run(), setup=setup, rounds=ROUNDS)
    assert spent > 0
    made[0].check()
