"""The bare cluster: what it counts as done is in the files of a majority."""

import errno
import importlib.util
import socket
import struct
import time

import pytest

from phx._core.codec import crc32c
from phx.bench.limit_door import File, Node
from phx.bench.limit_run import LimitFailed, lines, measure, quantile, run_cluster, shares

MIB = 1 << 20
FRAME = struct.Struct("<IIQII")
RECORD = struct.Struct("<IIIIQQ")
MAGIC = 0x4C584850
LOOPS = [
    "",
    "asyncio",
    pytest.param(
        "uvloop",
        marks=pytest.mark.skipif(
            not importlib.util.find_spec("uvloop"), reason="uvloop is not installed"
        ),
    ),
]

Values = dict[tuple[int, int], bytes]


def record(group: int, first: int, values: list[bytes]) -> bytes:
    body = b"".join(values)
    rest = RECORD.pack(0, len(body), group, len(values), first, 0)[4:] + body
    return struct.pack("<I", crc32c(rest)) + rest


def frame(number: int, source: int, records: list[bytes]) -> bytes:
    body = b"".join(records)
    return FRAME.pack(MAGIC, FRAME.size + len(body), number, source, len(records)) + body


def frames_of(raw: bytes) -> tuple[list[tuple[int, int, Values]], int]:
    """(source, number, values by group and index) of all frames, and the bytes they take."""
    found, at = [], 0
    while len(raw) - at >= FRAME.size:
        magic, nbytes, number, source, records = FRAME.unpack_from(raw, at)
        if magic != MAGIC or at + nbytes > len(raw):
            break
        values: Values = {}
        seen = at + FRAME.size
        for _ in range(records):
            crc, body, group, count, first, _ = RECORD.unpack_from(raw, seen)
            end = seen + RECORD.size + body
            assert crc32c(raw[seen + 4 : end]) == crc
            size = body // count
            for i in range(count):
                start = seen + RECORD.size + i * size
                values[group, first + i] = raw[start : start + size]
            seen = end
        assert seen == at + nbytes
        found.append((source, number, values))
        at += nbytes
    return found, at


def values_in(path) -> Values:
    found, _ = frames_of(path.read_bytes())
    return {key: value for _, _, values in found for key, value in values.items()}


@pytest.mark.processes
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("nodes", "leaders"), [(3, "spread"), (3, "one"), (2, "spread")])
def test_what_is_done_is_in_the_files_of_a_majority(tmp_path, loop, nodes, leaders):
    results = run_cluster(
        tmp_path,
        nodes=nodes,
        groups=7,
        inflight=50,
        value_bytes=33,
        seconds=0.2,
        warmup=0.0,
        leaders=leaders,
        loop=loop,
        file_bytes=32 * MIB,
    )
    assert [one["wraps"] for one in results] == [0] * nodes
    files = [values_in(tmp_path / f"node{node}" / "limit.journal") for node in range(nodes)]
    for node, one in enumerate(results):
        for group, done in enumerate(one["done"]):
            leads = node == (group % nodes if leaders == "spread" else 0)
            assert done >= 7 if leads else done == 0
            for index in range(done):
                holders = [file for file in files if (group, index) in file]
                assert len(holders) > nodes // 2
                assert (group, index) in files[node]
                if not loop:
                    value = struct.pack("<Q", index) + b"\x70" * 25
                    assert {file[group, index] for file in holders} == {value}
        assert one["done"] == one["taken"]
        assert one["syncs"] > 0
        if leaders == "spread" or node == 0:
            assert 0 < one["values"] <= sum(one["done"])


@pytest.mark.processes
def test_a_journal_is_overwritten_round_and_round(tmp_path):
    results = run_cluster(
        tmp_path,
        nodes=3,
        groups=3,
        inflight=300,
        value_bytes=5001,
        seconds=0.3,
        warmup=0.0,
        file_bytes=2 * MIB,
    )
    for node, one in enumerate(results):
        assert one["wraps"] > 0
        assert one["written_total_bytes"] <= (one["wraps"] + 1) * 2 * MIB
        raw = (tmp_path / f"node{node}" / "limit.journal").read_bytes()
        assert len(raw) == 2 * MIB
        assert frames_of(raw)[1] > 0
        assert one["done"] == one["taken"]


@pytest.mark.processes
def test_a_process_that_fails_ends_them_all(tmp_path):
    (tmp_path / "node1").write_text("in the way")
    with pytest.raises(LimitFailed, match="NotADirectoryError"):
        run_cluster(tmp_path, nodes=3, groups=3, inflight=3, value_bytes=10, seconds=0.2)


@pytest.mark.processes
def test_everything_is_measured_and_the_files_are_removed(tmp_path):
    said = []
    result = measure(
        tmp_path / "new", groups=5, inflight=20, value_bytes=64, seconds=0.2, progress=said.append
    )
    assert list((tmp_path / "new").iterdir()) == []
    assert said
    assert set(result) == {
        "sync_us",
        "append_bytes_per_s",
        "round_trip_us",
        "cluster",
        "cluster_one",
        "cluster_futures",
    }
    assert "asyncio" in result["cluster_futures"]
    for row in (result["cluster"], result["cluster_one"], *result["cluster_futures"].values()):
        assert row["values"] > 0
        assert row["values_per_s"] > 0
        assert row["syncs"] > 0
        assert 0 < row["p50_us"] <= row["p99_us"]
    assert len(lines(result)) > 20


class Pair:
    """One of two nodes, whose neighbour is the test."""

    def __init__(self, folder):
        self.file = File(str(folder / "node"), 2 * MIB)
        self.node = Node(self.file, 0, 2, 2, 16)
        self.out, out = socket.socketpair()
        self.back, back = socket.socketpair()
        self._theirs = (out, back)
        for one in self._theirs:
            one.setblocking(False)
        for one in (self.out, self.back):
            one.settimeout(10)
        self.node.connect(out.fileno(), back.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.node.stop()
        del self.node  # what it holds is given back with it
        self.file.close()
        for one in (self.out, self.back, *self._theirs):
            one.close()

    def frame(self) -> bytes:
        head = self.out.recv(FRAME.size, socket.MSG_WAITALL)
        return head + self.out.recv(FRAME.unpack(head)[1] - FRAME.size, socket.MSG_WAITALL)

    def until(self, what) -> None:
        until = time.monotonic() + 10
        while not what():
            assert time.monotonic() < until
            time.sleep(0.005)


@pytest.fixture
def pair(tmp_path, no_leaks):
    with Pair(tmp_path) as made:
        yield made


def test_nothing_is_done_before_the_neighbour_acknowledges(pair):
    pair.node.start(0, time.monotonic_ns(), [(1, 3)])
    found, _ = frames_of(pair.frame())
    assert [(source, number, sorted(values)) for source, number, values in found] == [
        (0, 1, [(1, 0), (1, 1), (1, 2)])
    ]
    time.sleep(0.1)  # its own sync is long over
    assert not pair.node.drained
    pair.out.sendall(struct.pack("<Q", 1)[:5])
    pair.out.sendall(struct.pack("<Q", 1)[5:])
    pair.until(lambda: pair.node.drained)
    pair.node.stop()
    assert pair.node.result()["done"] == [0, 3]


def test_what_is_never_acknowledged_is_never_done(pair):
    pair.node.start(0, time.monotonic_ns(), [(0, 3)])
    pair.frame()
    time.sleep(0.1)
    pair.node.stop()
    result = pair.node.result()
    assert (result["done"], result["taken"]) == ([0, 0], [3, 0])


def test_frames_are_in_the_file_when_they_are_acknowledged(pair, tmp_path):
    pair.node.start(0, time.monotonic_ns())
    sent = b"".join(
        frame(number, 1, [record(1, number, [b"v%015d" % number])]) for number in (1, 2, 3)
    )
    for at in range(0, len(sent), 50):  # in pieces
        pair.back.sendall(sent[at : at + 50])
        time.sleep(0.002)
    acked = 0
    while acked < 3:
        acked = struct.unpack("<Q", pair.back.recv(8, socket.MSG_WAITALL))[0]
    raw = (tmp_path / "node" / "limit.journal").read_bytes()
    assert raw[: len(sent)] == sent
    assert not any(raw[len(sent) :])


@pytest.mark.parametrize(
    "wrong",
    [
        frame(2, 1, [record(0, 0, [b"x" * 16])]),  # the first is missing
        frame(1, 1, [record(0, 0, [b"x" * 16])])[:-1] + b"y",  # not what its checksum says
        b"\0" * FRAME.size,
        FRAME.pack(MAGIC, 1 << 30, 1, 1, 1),
        FRAME.pack(MAGIC, 1, 1, 1, 0),
        FRAME.pack(MAGIC, FRAME.size + RECORD.size, 1, 1, 1) + RECORD.pack(0, 1 << 31, 0, 1, 0, 0),
        FRAME.pack(MAGIC, FRAME.size, 1, 1, 1),
    ],
)
def test_what_is_no_frame_ends_the_node(pair, tmp_path, wrong):
    pair.node.start(0, time.monotonic_ns() + 10**11)
    pair.back.sendall(wrong)
    pair.until(lambda: pair.node.error)
    assert pair.node.error == errno.EPROTO
    assert not any((tmp_path / "node" / "limit.journal").read_bytes())


def test_acknowledging_what_was_never_sent_ends_the_node(pair):
    pair.node.start(0, time.monotonic_ns() + 10**11, [(0, 1)])
    pair.frame()
    pair.out.sendall(struct.pack("<Q", 1 << 62))
    pair.until(lambda: pair.node.error)
    assert pair.node.error == errno.EPROTO


def test_a_neighbour_that_goes_early_ends_the_node(pair):
    pair.node.start(0, time.monotonic_ns() + 10**11, [(0, 1)])
    pair.frame()
    pair.back.close()
    pair.until(lambda: pair.node.error)
    assert pair.node.error == errno.ECONNRESET


def test_values_are_shared_out():
    assert shares(3, 7, 50, "spread") == [{0: 8, 3: 7, 6: 7}, {1: 7, 4: 7}, {2: 7, 5: 7}]
    assert shares(3, 7, 2, "spread") == [{0: 1}, {1: 1}, {}]
    assert shares(3, 2, 5, "one") == [{0: 3, 1: 2}, {}, {}]


def test_quantiles():
    counted = [(30, 1), (10, 98), (20, 1)]
    assert [quantile(counted, q) for q in (0.5, 0.98, 0.99, 1.0)] == [10, 10, 20, 30]
    assert quantile([], 0.5) == 0


def test_wrong_arguments_are_refused(tmp_path, no_leaks):
    file = File(str(tmp_path / "node"), 2 * MIB)
    for wrong in [(3, 3, 1, 1), (0, 9, 1, 1), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)]:
        with pytest.raises(ValueError):
            Node(file, *wrong)
    with pytest.raises(ValueError):
        file.overwrite(3 * MIB, 0.01)
    with pytest.raises(BlockingIOError):
        File(str(tmp_path / "node"), 2 * MIB)
    file.close()
