"""From keys to groups: for ever the same, evenly, and with few that move."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import phx

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "keys.md"
COUNTS = (1, 2, 3, 100, 1_000, 1_048_576)

BC = """
ibase=16
s={digest}
ibase=A
b=0
j=0
while (j < {groups}) {{
  b = j
  s = (s * 2862933555777941757 + 1) % (2^64)
  j = ((b + 1) * 2^31) / (s / 2^33 + 1)
}}
b
"""


def vectors():
    """(key, groups, group) of the page."""
    for line in PAGE.read_text().splitlines():
        if match := re.match(r"\| `(.*)` \|((?: \d+ \|){6})$", line):
            key = match[1].encode("latin-1").decode("unicode_escape").encode("latin-1")
            for groups, group in zip(COUNTS, match[2].split("|"), strict=False):
                yield key, groups, int(group)


@pytest.mark.parametrize(("key", "groups", "group"), list(vectors()))
def test_the_vectors_of_the_page_hold(key, groups, group):
    assert phx.group_of(key, groups) == group


def test_the_page_has_vectors():
    assert len(list(vectors())) == 36


@pytest.mark.skipif(not (shutil.which("b2sum") and shutil.which("bc")), reason="no b2sum, no bc")
@pytest.mark.parametrize("number", range(20))
def test_other_tools_come_to_the_same_group(number):
    key = b"%d/%d" % (number, number**7)
    groups = 1 + number**4
    summed = subprocess.run(
        ["b2sum", "-l", "64"], input=key, capture_output=True, check=True, timeout=10
    )
    digest = bytes.fromhex(summed.stdout[:16].decode())[::-1].hex().upper()
    program = BC.format(digest=digest, groups=groups)
    found = subprocess.run(
        ["bc"], input=program, capture_output=True, check=True, text=True, timeout=10
    )
    assert phx.group_of(key, groups) == int(found.stdout)


@pytest.mark.parametrize("groups", [7, 100])
def test_keys_spread_evenly(groups):
    keys = 1_000 * groups
    held = Counter(phx.group_of(f"user/{n}", groups) for n in range(keys))
    assert set(held) == set(range(groups))
    # Of a fair choice: the sum below has mean groups - 1 and variance 2 (groups - 1).
    chi_squared = sum((count - 1_000) ** 2 / 1_000 for count in held.values())
    assert chi_squared < groups - 1 + 5 * (2 * (groups - 1)) ** 0.5


@pytest.mark.parametrize("groups", [1, 2, 10, 99])
def test_with_one_group_more_a_fair_part_of_the_keys_moves_there_and_no_other(groups):
    keys = [b"%d" % n for n in range(20_000)]
    before = [phx.group_of(key, groups) for key in keys]
    after = [phx.group_of(key, groups + 1) for key in keys]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {groups}
    assert 0.8 < len(moved) * (groups + 1) / len(keys) < 1.2


def test_ids_stand_for_their_places():
    ids = [7, 3, 1_000_000, 5]
    for n in range(100):
        assert phx.group_of(b"%d" % n, ids) == ids[phx.group_of(b"%d" % n, 4)]


def test_text_is_its_utf8():
    assert phx.group_of("grüße", 1_000) == phx.group_of("grüße".encode(), 1_000)
    with pytest.raises(ValueError, match="surrogates"):
        phx.group_of("\ud800", 10)


@pytest.mark.parametrize("groups", [0, -1, [], 1_048_577])
def test_there_have_to_be_groups(groups):
    with pytest.raises(ValueError, match="groups are 1"):
        phx.group_of("key", groups)
