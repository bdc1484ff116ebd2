"""Configuration: every mistake is found, all at once, with its path."""

import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx.config import Config, Journal, Limits, Timing, split_address
from phx.errors import ConfigError

MEMBERS = {1: "127.0.0.1:7001", 2: "127.0.0.1:7002", 3: "[::1]:7003"}


def config(**changes):
    given = {"cluster": "test", "node": 1, "members": MEMBERS, "dir": "x", "groups": 3}
    return Config(**(given | changes))


def problems_of(**changes):
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    return caught.value.problems


def test_a_sound_configuration_is_taken_as_it_is():
    made = config(bind="0.0.0.0:0", timing=Timing(heartbeat_us=50_000))
    assert made.group_ids == (0, 1, 2)
    assert made.timing.heartbeat_us == 50_000
    assert made.options()["heartbeat_us"] == 50_000
    with pytest.raises(FrozenInstanceError):
        made.node = 2


def test_groups_may_be_a_list_of_ids():
    assert config(groups=[7, 3, 5]).group_ids == (3, 5, 7)


def test_defaults_are_within_their_own_ranges_and_relations():
    made = config()
    assert made.timing.lease_us >= 3 * made.timing.heartbeat_us
    for section in (made.timing, made.limits, made.journal):
        for one in fields(section):
            assert one.metadata["low"] <= getattr(section, one.name) <= one.metadata["high"]


def test_every_option_of_the_driver_is_an_integer():
    assert all(type(value) is int for value in config().options().values())


def test_the_largest_value_fits_when_its_limits_are_raised():
    large = 32 << 20
    limits = Limits(
        value_bytes_max=large,
        window_bytes=2 * large,
        group_bytes_max=4 * large,
        peer_queue_bytes_max=2 * large,
    )
    journal = Journal(segment_bytes=2 * large, settle_bytes=4 * large)
    assert config(limits=limits, journal=journal).limits.value_bytes_max == large


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cluster": ""}, "cluster: must be a name"),
        ({"cluster": 3}, "cluster: must be a name"),
        ({"node": 0}, "node: must be 1 .. 1048575, not 0"),
        ({"node": True}, "node: must be"),
        ({"node": 9}, "members: node 9 itself is missing"),
        ({"dir": 3}, "dir: must be a path"),
        ({"groups": 0}, "groups: must be 1 .. 1048576"),
        ({"groups": True}, "groups: must be a number or a list"),
        ({"groups": []}, "groups: must not be empty"),
        ({"groups": [1, 2, 1]}, "groups[2]: group 1 stands there twice"),
        ({"groups": [1, -1]}, "groups[1]: a group id is"),
        ({"groups": "12"}, "groups: must be a number or a list"),
        ({"balance": 1}, "balance: must be true or false"),
        ({"seed": -1}, "seed: must be"),
        ({"bind": "nowhere"}, "bind: 'nowhere' is not host:port"),
        ({"bind": "::1:70"}, "bind: '::1:70': an IPv6 address stands in brackets"),
        ({"bind": ":70"}, "bind: ':70' names no host"),
        ({"bind": "a:65536"}, "bind: 'a:65536': the port is a number"),
        ({"members": {}}, "members: must be a table"),
        ({"members": {1: "a:1", 2: "a:1"}}, "members.2: a:1 is the address of node 1 too"),
        ({"members": {1: "a:1", 2: 7}}, 'members.2: must be "host:port"'),
        ({"members": {n: f"a:{n}" for n in range(1, 17)}}, "members: 16 are more than 15"),
        ({"members": {1: "a:1", 1 << 20: "b:1"}}, "members.1048576: a node id is"),
        ({"timing": Timing(heartbeat_us=5)}, "timing.heartbeat_us: must be 1000 .."),
        ({"timing": {"lease_us": 299_999}}, "timing.lease_us: 299999 is below 3 x heartbeat_us"),
        ({"timing": {"lease_us": "long"}}, "timing.lease_us: must be a whole number, not 'long'"),
        ({"timing": {"hartbeat_us": 1}}, "timing.hartbeat_us: unknown"),
        ({"timing": 5}, "timing: must be a table"),
        ({"limits": {"value_bytes_max": 64 << 20}}, "limits.value_bytes_max: must be 1 .."),
        ({"limits": {"window_bytes": 1 << 20}}, "limits.window_bytes: 1048576 does not hold"),
        ({"limits": {"group_values_max": 65_537}}, "limits.group_values_max: must be 1 .. 65536"),
        ({"limits": {"node_values_max": 9}}, "limits.group_values_max: 65536 is above"),
        (
            {"journal": {"segment_bytes": 1 << 20, "settle_bytes": 1 << 20}},
            "journal.segment_bytes: 1048576 does not hold the largest record",
        ),
        ({"journal": {"journal_bytes_max": 64 << 20}}, "journal.journal_bytes_max: 67108864 is"),
        ({"journal": {"settle_bytes": 600 << 20}}, "journal.settle_bytes: 629145600 is not"),
    ],
)
def test_a_mistake_is_named_with_its_path(changes, expected):
    assert any(problem.startswith(expected) for problem in problems_of(**changes))


def test_all_mistakes_are_reported_at_once():
    found = problems_of(
        node=0, groups=[1, 1], bind="x", timing={"lease_us": 1, "no": 2}, journal=[]
    )
    paths = {problem.split(":")[0] for problem in found}
    assert paths >= {"node", "groups[1]", "bind", "timing.lease_us", "timing.no", "journal"}


TOML = """
cluster = "orders"
node = 2
dir = "data"
groups = [1, 2]
[members]
1 = "10.0.0.1:7000"
2 = "10.0.0.2:7000"
[timing]
heartbeat_us = 50_000
[journal]
settle_bytes = 67_108_864
"""


def test_toml_gives_the_same_as_code(tmp_path):
    (tmp_path / "node.toml").write_text(TOML)
    made = Config.from_toml(tmp_path / "node.toml")
    assert made == Config(
        cluster="orders",
        node=2,
        dir=tmp_path / "data",
        groups=(1, 2),
        members={1: "10.0.0.1:7000", 2: "10.0.0.2:7000"},
        timing=Timing(heartbeat_us=50_000),
        journal=Journal(settle_bytes=64 << 20),
    )


def test_toml_mistakes_are_reported_at_once(tmp_path):
    (tmp_path / "node.toml").write_text('node = "one"\ncolour = 3\n[limits]\nwindow = 0\nx = 1\n')
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(tmp_path / "node.toml")
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "colour",
        "cluster",
        "dir",
        "members",
        "node",
        "limits.window",
        "limits.x",
    }


@pytest.mark.parametrize("text", [None, "cluster = ", "\x00"])
def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path, text):
    path = tmp_path / "node.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"node\.toml"):
        Config.from_toml(path)


def test_a_relative_folder_is_taken_from_the_file(tmp_path):
    (tmp_path / "node.toml").write_text(TOML)
    assert Config.from_toml(tmp_path / "node.toml").dir == tmp_path / "data"
    absolute = TOML.replace('"data"', '"/srv/data"')
    (tmp_path / "node.toml").write_text(absolute)
    assert str(Config.from_toml(tmp_path / "node.toml").dir) == "/srv/data"


def test_the_cluster_id_is_fixed_by_the_name():
    # A change would keep every node from its cluster and its folder.
    assert config(cluster="test").cluster_id == 0xD366D6A2B43BAD96
    assert config(cluster="a").cluster_id != config(cluster="b").cluster_id
    assert 0 < config(cluster="é").cluster_id < 1 << 64


@given(st.text())
def test_an_address_is_split_or_refused(text):
    try:
        host, port = split_address(text)
    except ValueError:
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            split_address(text)
    else:
        assert host
        assert 0 <= port <= 65535


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a:1", ("a", 1)), ("[::1]:0", ("::1", 0)), ("h.example:65535", ("h.example", 65535))],
)
def test_addresses(text, expected):
    assert split_address(text) == expected


def test_ten_thousand_groups_are_checked_quickly():
    assert len(config(groups=list(range(10_000))).group_ids) == 10_000


def test_a_configuration_can_be_varied():
    assert replace(config(), node=2).node == 2
