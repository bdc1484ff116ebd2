"""Fuzzing of transfers, which are Python: ``python tests/fuzz/transfer.py``.

    --executions N    (200,000)
    --seed S          the same seed, the same inputs (1)
    --replay FILE…    runs these inputs and nothing else
    --write-corpus    packs the first inputs into tests/fuzz/corpus/transfer.zip

An input is a script. Its first byte says who is talked to: who fetches a checkpoint, with or
without something staged, who asks for an offer, for values, or who provides. Then come acts, one
byte each and what they need; beyond the end there are zeros:

    0  a frame of any kind, sealed, with any payload       4  time goes by
    1  any bytes                                           5  a manifest with one field changed, and
    2  the next genuine frame                                 digests that fit
    3  a genuine frame with one byte changed, sealed anew  6  a genuine frame, cut into two

Whatever is said: nothing but a Cut, or an OSError of the disk, is raised; nothing is written
outside of the one staging folder, and no more than the manifest allows; no more bytes are kept
than a frame may have; only what was asked for ends, and then it is a checkpoint of just these
bytes.

Exit code: 0 if all executions were clean; 1 for a finding: its input is in build/fuzz-findings.
"""

import argparse
import re
import sys
import time
import traceback
import zipfile
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from random import Random

import msgpack

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "transfer"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "checkpoint"))

from checkpoint_lab import whole
from transfer_lab import GREETING, MINE, THEIRS, Pantry, finish_of, provider, wish

from phx.checkpoint import catalog
from phx.checkpoint.manifest import HEAD, SHARED_KEYS, encode
from phx.sim.files import MemoryFiles
from phx.transfer.messages import (
    ENTRIES_WANTED,
    LIMITS,
    OFFER_WANTED,
    Cut,
    Entry,
    Fetch,
    Frames,
    pack_ack,
)
from phx.transfer.receiver import Asker, Receiver
from phx.transfer.sender import Bucket, Sender
from phx.transfer.staging import Staged

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus" / "transfer.zip"
FINDINGS = ROOT / "build" / "fuzz-findings"
BYTES_MAX = 2048
ROLES = 5
THEIR_FILES, WANTED = provider((300, 0, 40))
VALUES = [Entry(instance, b"v" * instance) for instance in range(1, 12)]
ALLOWED = re.compile(
    r"checkpoints/(staging/(fetch-7-0/(manifest|new/([a-z0-9][a-z0-9._-]{0,63})?)?)?)?"
)


class Script:
    """Decisions, from the front of the bytes; zeros where they end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    @property
    def left(self) -> bool:
        return self.at < len(self.data)


def frames_of(said: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(said):
        count = int.from_bytes(said[at + 8 : at + 12], "little")
        found.append((int.from_bytes(said[at + 6 : at + 8], "little"), said[at + 32 :][:count]))
        at += 32 + count
    return found


def talk(fetch: Fetch) -> list[tuple[int, bytes]]:
    """What a provider answers."""
    sending = Sender(THEIR_FILES, THEIRS, Pantry(WANTED, VALUES), Bucket(1 << 40), 0)
    asking = Asker(MINE, fetch, 0)
    return frames_of(sending.feed(asking.hello(GREETING), 0))


ASKED = [
    Fetch("checkpoint", 7, 5, 0, WANTED.content),
    Fetch("checkpoint", 7, 5, 0, WANTED.content, ((0, 300),)),
    Fetch(OFFER_WANTED, 7, 5),
    Fetch(ENTRIES_WANTED, 7, 2, 9),
]
ANSWERS = [talk(fetch) for fetch in ASKED]
HELLOS = [frames_of(Asker(MINE, fetch, 0).hello(GREETING))[0] for fetch in ASKED]
# What a fetcher says: one question, and ACKs.
QUESTIONS = [*HELLOS, (8, pack_ack(0, 300)), (8, pack_ack(2, 40)), (8, pack_ack(0, 7))]


def changed_manifest(script: Script) -> tuple[bytes, bytes]:
    """A field of the manifest changed, and digests that fit; and its ident."""
    packed = encode(WANTED)
    body = msgpack.unpackb(packed[HEAD.size : -32], raw=False)
    numbers = [0, 1, -1, 63, 4096, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
    value = [
        *numbers, b"", b"\0" * 32, "", "../x", "A", "machine-2", [], [[]], {}, None, True, 1.5,
    ][script.byte() % 21]  # fmt: skip
    where = script.byte()
    if where % 3 == 0:
        key = sorted(body)[where // 3 % len(body)]
        body[key] = value
    elif where % 3 == 1:
        entry = body["files"][script.byte() % 3]
        entry[sorted(entry)[where // 3 % len(entry)]] = value
    else:
        body["files"] = body["files"][script.byte() % 3 :] * (1 + script.byte() % 40)
    shared = {key: body[key] for key in sorted(SHARED_KEYS)}
    body["content"] = blake2b(msgpack.packb(shared), digest_size=32).digest()
    made = msgpack.packb(dict(sorted(body.items())))
    head = packed[:12] + len(made).to_bytes(4, "little")
    return head + made + blake2b(head + made, digest_size=32).digest(), body["content"]


class Talk:
    """One of the roles, in memory."""

    def __init__(self, role: int) -> None:
        self.files = MemoryFiles()
        self.role = role
        self.now_us = 0
        self.side: Receiver | Asker | Sender
        self.genuine = list(QUESTIONS if role == 4 else ANSWERS[role])
        self.ends = MINE if role == 4 else THEIRS
        if role <= 1:
            staged = None
            if role == 1:
                staged = Staged.begin(self.files, catalog.ROOT, WANTED, 0)
                whole_file = ANSWERS[0][1][1][16:]
                staged.append(whole_file)
            self.side = Receiver(self.files, catalog.ROOT, MINE, wish(WANTED, above=5), 0, staged)
        elif role == 4:
            self.side = Sender(THEIR_FILES, THEIRS, Pantry(WANTED, VALUES), Bucket(1 << 20), 0)
        else:
            self.side = Asker(MINE, ASKED[role], 0)

    def act(self, script: Script) -> None:
        what = script.byte() % 7
        if what == 0:
            kind = script.byte() % 13
            self.say(self.ends.frame(kind, script.take(script.byte())))
        elif what == 1:
            self.say(script.take(script.byte()))
        elif what == 4:
            self.now_us += script.byte() * 50_000
            self.say(b"")
        elif what == 5:
            manifest, ident = changed_manifest(script)
            if isinstance(self.side, Receiver) and self.side.staged is None:
                # It is what was asked for: so the ident does not protect.
                self.side._wish = wish(WANTED, above=5, ident=ident, bytes_max=10_000)
                self.genuine = [one for one in self.genuine if one[0] != 6]
            self.say(self.ends.frame(6, manifest))
        elif self.genuine:
            kind, payload = self.genuine.pop(0)
            if what == 3 and payload:
                at = (script.byte() << 8 | script.byte()) % len(payload)
                mended = bytearray(payload)
                mended[at] ^= script.byte() or 1
                payload = bytes(mended)
            said = self.ends.frame(kind, payload)
            cut = script.byte() % len(said) if what == 6 else 0
            self.say(said[:cut])
            self.say(said[cut:])

    def say(self, data: bytes) -> None:
        self.now_us += 1
        self.side.feed(data, self.now_us)
        frames = self.side._frames
        assert isinstance(frames, Frames)
        assert len(frames._kept) <= 32 + max((LIMITS[kind] for kind in frames.kinds), default=0)

    def check(self) -> None:
        if not isinstance(self.side, Receiver):
            if isinstance(self.side, Asker):
                wanted = [one for one in VALUES if 2 < one.instance <= 9]
                found = [one.instance for one in self.side.entries]
                assert found == [one.instance for one in wanted[: len(found)]]
            return
        tree = self.files.tree()
        assert all(ALLOWED.fullmatch(path) for path in tree), tree
        files = [path for path in tree if "/new/" in path and not path.endswith("/")]
        assert sum(len(self.files.content(path)) for path in files) <= self.side.progress.total
        if self.side.ended:
            with suppress(Cut):
                made = finish_of(self.side)
                assert made.content == self.side._wish.ident
                assert whole(self.files, made)


def run(data: bytes) -> None:
    """One input. Raises for a finding."""
    script = Script(data)
    talk = Talk(script.byte() % ROLES)
    try:
        while script.left:
            talk.act(script)
    except (Cut, OSError):
        pass
    talk.check()
    if isinstance(talk.side, Sender):
        talk.side.close()


def seeds() -> dict[str, bytes]:
    """Each role, with nothing but what belongs there; and with one act of each kind among it."""
    made = {}
    for role in range(ROLES):
        made[f"genuine{role}"] = bytes([role]) + b"\x02" * 8
        made[f"cut{role}"] = bytes([role]) + b"\x06\x21" * 8
        made[f"changed{role}"] = bytes([role]) + b"\x02\x03\x00\x05\x01" + b"\x02" * 5
        made[f"sealed{role}"] = bytes([role]) + b"\x02\x00\x07\x12" + bytes(18) + b"\x02\x04\xff"
    for field in range(12):
        made[f"manifest{field}"] = bytes([0, 5, field, field]) + b"\x01\x02\x02"
        made[f"file{field}"] = bytes([0, 5, field + 9, 3 * field + 1, 1]) + b"\x02" * 6
        made[f"name{field}"] = bytes([0, 5, field + 9, 16, 0]) + b"\x02" * 6
    return made


def corpus() -> list[bytes]:
    with zipfile.ZipFile(CORPUS) as archive:
        return [archive.read(name) for name in sorted(archive.namelist())]


def mutated(chance: Random, inputs: list[bytes]) -> bytes:
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        match chance.randrange(6):
            case 0 | 1:
                data[at : at + 1] = chance.randbytes(1)
            case 2:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                del data[at : at + chance.randint(1, 4)]
            case 4:
                data[at:at] = bytes([chance.randrange(7)])
            case 5:
                other = chance.choice(inputs)
                data[at:] = other[chance.randint(0, len(other)) :]
    return bytes(data[:BYTES_MAX])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executions", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=Path, nargs="+")
    parser.add_argument("--write-corpus", action="store_true")
    options = parser.parse_args()
    if options.write_corpus:
        with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(seeds().items()):
                archive.writestr(zipfile.ZipInfo(name), data)
        return 0
    if options.replay:
        for path in options.replay:
            run(path.read_bytes())
        return 0
    inputs, chance = corpus(), Random(options.seed)
    start = time.monotonic()
    for number in range(options.executions):
        data = inputs[number] if number < len(inputs) else mutated(chance, inputs)
        try:
            run(data)
        except Exception:
            traceback.print_exc()
            FINDINGS.mkdir(parents=True, exist_ok=True)
            place = FINDINGS / f"transfer-seed{options.seed}-{number}"
            place.write_bytes(data)
            print(f"transfer: a finding, the input is in {place}")
            return 1
    print(f"transfer: {options.executions} executions, clean, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
