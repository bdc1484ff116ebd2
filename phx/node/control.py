"""The control socket of a running node: ``control`` in its folder, for the user it runs as.

A connection carries one request and one answer, each a line of JSON:

    {"do": "checkpoint", "group": 7}       or "group": null, for all that have applied anything
    {"taken": [{"group": 7, "frontier": …, "bytes": …, "path": …, "seconds": …}],
     "failed": [{"group": 8, "why": …}]}   or {"error": …}

    {"do": "drain", "to": 3, "timeout": 10.0}    or "to": null, for whoever should have it next
    {"priority": 0, "moved": [{"group": 7, "node": 3, "epoch": …}],
     "failed": [{"group": 8, "why": …}]}

    {"do": "undrain"}
    {"priority": 100}

    {"do": "peers"}
    {"peers": [{"node": 2, "address": …, "connected": …, "refused": …, "since_us_ago": …,
                "heard_us_ago": …}]}

    {"do": "move", "node": 2, "address": "10.0.0.9:7000"}      as `Node.set_address`
    {"peers": …}

and what concerns members, and groups that are made anew: `phx.node.orders`.

The file has mode 0600 before anybody can connect: so it is this user (or root) who does.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from phx.applier import GroupState
from phx.errors import NotInCluster, PhxError, SystemFailure
from phx.node.moves import Moves
from phx.node.orders import Orders, changed, turned
from phx.node.peers import PeerList
from phx.types import Changed, CheckpointInfo, CreatedGroup, Moved

__all__ = ["NAME", "Control", "ask"]

log = logging.getLogger("phx")

NAME = "control"
CONNECTIONS_MAX = 8
REQUEST_BYTES_MAX = 4096
REQUEST_S = 5.0  # for a whole request to come
ANSWER_S = 5.0  # for an answer to be taken
CONNECT_S = 5.0
MOVES_S_MAX = 3600.0
ACCEPT_S = 0.2  # without a descriptor for a new connection
PATH_BYTES_MAX = 100  # of an address: 104 with the end on macOS, 108 on Linux

Take = Callable[[int], "Future[CheckpointInfo]"]
Step = tuple[Callable[[], "Future[Any]"], Callable[["Future[Any]"], None]]
"""One thing that is asked for: begins it; notes what came of it."""


class Caller:
    """One connection: its request as far as it came, then the steps that are still to be done."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.until_s = time.monotonic() + REQUEST_S  # for the request
        self.request = b""
        self.steps: Iterator[Step] | None = None  # None: the request is not whole
        self.future: Future[Any] | None = None
        self.note: Callable[[Future[Any]], None]  # what comes of it
        self.half = False  # it sends no more, and may read on
        self.answer: dict[str, Any] = {}

    def gone(self) -> bool:
        """Whether it reads no more either."""
        if not self.half:
            return False
        poll = select.poll()
        poll.register(self.connection, 0)  # both halves closed is told unasked
        return bool(poll.poll(0))


class Control(threading.Thread):
    """The thread that listens there. It takes no part in anything else: it waits for futures.

    Args:
        folder: of the node, whose lock it holds.
        take: asks for a checkpoint of a group. Of several groups of one request the next is asked
            for when the one before is done, so that nobody's request fills the line.
        moves: gives leaderships away.
        peers: the other nodes; raises what a call on a node gets that is not open.
        orders: what concerns members.
    """

    def __init__(
        self,
        folder: Path,
        states: Mapping[int, GroupState],
        take: Take,
        moves: Moves,
        peers: Callable[[], PeerList],
        orders: Orders | None = None,
    ) -> None:
        super().__init__(name="phx-control", daemon=True)
        self._folder = folder
        self._states = states
        self._take = take
        self._moves = moves
        self._peers = peers
        self._orders = orders
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._pipe = threading.RLock()  # it is not closed, and its number reused, under a writer
        self._callers: set[Caller] = set()
        self._ending = False

    def listen(self) -> None:
        """Make the socket and start; a folder that cannot have one has none, and a log line."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK((self._folder / NAME).lstat().st_mode):
                    (self._folder / NAME).unlink()  # of a node that was killed: we hold the lock
            with address_in(self._folder) as address:
                listener.bind(address)
            (self._folder / NAME).chmod(0o600)
            listener.listen(CONNECTIONS_MAX)  # nobody can connect before
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            log.warning("no control socket in %s: %s", self._folder, error)
            return
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self.start()

    def end(self, wait_s: float | None = None) -> None:
        """Close it, and whoever is connected. Idempotent."""
        self._ending = True
        if self.ident is not None:
            self._wake()
            if self is not threading.current_thread():
                self.join(wait_s)
        else:
            self._close()

    def _wake(self, *_: object) -> None:
        with self._pipe, suppress(BlockingIOError):  # full: it will wake
            if self._wake_in >= 0:
                os.write(self._wake_in, b".")

    def run(self) -> None:
        try:
            while not self._ending:
                self._turn()
        except Exception:
            log.exception("the control socket is given up")
        finally:
            self._close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._wait_s()):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj == self._wake_out:
                os.read(self._wake_out, 4096)
            else:
                self._serve(key.data, self._read)
        now = time.monotonic()
        for caller in list(self._callers):
            if caller.steps is None and now >= caller.until_s:
                self._drop(caller)
            elif caller.steps is not None:
                self._serve(caller, self._go_on)

    def _serve(self, caller: Caller, step: Callable[[Caller], None]) -> None:
        """Whatever goes wrong is this caller's answer: the others are served on."""
        try:
            step(caller)
        except (ValueError, PhxError) as error:
            self._reply(caller, {"error": str(error)})
        except Exception as error:
            log.exception("what was asked for in the control socket")
            self._reply(caller, {"error": f"{type(error).__name__}: {error}"})

    def _wait_s(self) -> float | None:
        times = [caller.until_s for caller in self._callers if caller.steps is None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(ACCEPT_S)  # it would be called again at once
            return
        connection.setblocking(False)
        if len(self._callers) >= CONNECTIONS_MAX:
            connection.close()
            return
        caller = Caller(connection)
        self._callers.add(caller)
        self._selector.register(connection, selectors.EVENT_READ, caller)

    def _read(self, caller: Caller) -> None:
        try:
            data = caller.connection.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and caller.steps is not None:
            caller.half = True
            self._selector.unregister(caller.connection)  # it would be called again at once
            if caller.gone():
                self._drop(caller)
            return
        if not data or caller.steps is not None:
            self._drop(caller)  # it went away in the middle; or says more than one request
            return
        caller.request += data
        if b"\n" in caller.request:
            caller.steps = self._understand(caller)
        elif len(caller.request) > REQUEST_BYTES_MAX:
            self._reply(caller, {"error": "the request is too long"})

    def _understand(self, caller: Caller) -> Iterator[Step]:
        """What is to be done. ValueError, PhxError: it is not understood, or cannot be done."""
        line, _, rest = caller.request.partition(b"\n")
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from None
        if rest or not isinstance(asked, dict):
            raise ValueError('a request is one line: {"do": …}')
        match asked:
            case {"do": "checkpoint", "group": group, **more} if not more:
                return self._checkpoints(caller, group)
            case {"do": "drain", "to": to, "timeout": timeout, **more} if not more:
                return self._drain(caller, to, timeout)
            case {"do": "undrain", **more} if not more:
                caller.answer = {"priority": self._moves.undrain()}
                return iter([])
            case {"do": "peers", **more} if not more:
                caller.answer = peers_of(self._peers())
                return iter([])
            case {"do": "move", "node": node, "address": address, **more} if not more:
                return self._move(caller, node, address)
            case {"do": "members", "group": group, **more} if not more and self._orders:
                caller.answer = self._orders.members(group)
                return iter([])
            case {"do": "change"} if self._orders:
                return changing(caller, self._orders.change(asked))
            case {"do": "groups", **more} if not more and self._orders:
                caller.answer = self._orders.groups()
                return iter([])
            case {"do": "create" | "stop" | "resume" | "delete"} if self._orders:
                return turning(caller, self._orders.turn_group(asked))
            case {"do": "repair", "groups": groups, **more} if not more and self._orders:
                return repairing(caller, self._orders.repair(groups))
            case {"do": "decommission", "timeout": timeout, **more} if not more and self._orders:
                future = self._orders.decommission(timeout)
                return changing(caller, future, lambda: {"priority": self._moves.priority})
        raise ValueError(
            'what can be asked for: {"do": "checkpoint", "group": …}, '
            '{"do": "drain", "to": …, "timeout": …}, {"do": "undrain"}, {"do": "peers"}, '
            '{"do": "move", "node": …, "address": …}, {"do": "members", "group": …}, '
            '{"do": "change", "how": …}, {"do": "decommission", "timeout": …}, {"do": "groups"}, '
            '{"do": "create", …}, {"do": "stop", …}, {"do": "resume", …}, {"do": "delete", …}, '
            '{"do": "repair", "groups": […]}'
        )

    def _checkpoints(self, caller: Caller, group: object) -> Iterator[Step]:
        """Of one group, or of all that have applied something."""
        caller.answer = {"taken": [], "failed": []}
        if group is None:
            states = list(self._states.items())
            groups = [n for n, one in states if one.applied and not one.removed]
        elif isinstance(group, bool) or not isinstance(group, int):
            raise ValueError("a group is a number, or null")
        elif group not in self._states:
            raise NotInCluster(f"group {group} is not hosted by this node")
        else:
            groups = [group]
        return ((partial(self._take, one), partial(taken, caller.answer, one)) for one in groups)

    def _drain(self, caller: Caller, to: object, timeout: object) -> Iterator[Step]:
        if to is not None and (isinstance(to, bool) or not isinstance(to, int)):
            raise ValueError("a node is a number, or null")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise ValueError("a timeout is a number of seconds")
        if not 0 < timeout <= MOVES_S_MAX:
            raise ValueError(f"a timeout is above 0 and at most {MOVES_S_MAX:.0f} s")
        future = self._moves.drain(to, timeout)
        caller.answer = {"priority": self._moves.priority, "moved": [], "failed": []}
        return iter([(lambda: future, partial(moved, caller.answer))])

    def _move(self, caller: Caller, node: object, address: object) -> Iterator[Step]:
        if isinstance(node, bool) or not isinstance(node, int):
            raise ValueError("a node is a number")
        if not isinstance(address, str):
            raise ValueError("an address is a text: host:port")
        peers, future = self._peers(), Future[None]()

        def move() -> None:  # a name is looked up, for as long as that takes
            try:
                peers.move(node, address)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

        def noted(done: Future[Any]) -> None:
            error = done.exception()
            caller.answer = {"error": str(error)} if error is not None else peers_of(peers)

        threading.Thread(target=move, name="phx-move", daemon=True).start()
        return iter([(lambda: future, noted)])

    def _go_on(self, caller: Caller) -> None:
        assert caller.steps is not None
        while caller.future is None or caller.future.done():
            if caller.future is not None:
                caller.note(caller.future)
                caller.future = None
            if caller.gone():
                self._drop(caller)  # it wants no more
                return
            step = next(caller.steps, None)
            if step is None:
                self._reply(caller, caller.answer)
                return
            begin, caller.note = step
            caller.future = begin()
            caller.future.add_done_callback(self._wake)

    def _reply(self, caller: Caller, answer: dict[str, Any]) -> None:
        try:
            caller.connection.settimeout(ANSWER_S)
            caller.connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:
            log.debug("who asked has gone: %s", error)
        self._drop(caller)

    def _drop(self, caller: Caller) -> None:
        self._callers.discard(caller)
        with suppress(KeyError, ValueError):
            self._selector.unregister(caller.connection)
        caller.connection.close()

    def _close(self) -> None:
        for caller in list(self._callers):
            self._drop(caller)
        if self._listener is not None:
            self._listener.close()
            with suppress(OSError):
                (self._folder / NAME).unlink()
            self._listener = None
        self._selector.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        with self._pipe:
            for descriptor in (self._wake_in, self._wake_out):
                if descriptor >= 0:
                    os.close(descriptor)
            self._wake_in = self._wake_out = -1

    def forget(self) -> None:
        """In a forked child: close our copies. The socket is the parent's."""
        for caller in self._callers:
            caller.connection.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        self._pipe = threading.RLock()  # the parent's may have been held when it forked
        self._close_pipe()


def changing(
    caller: Caller, future: Future[Changed], more: Callable[[], dict[str, Any]] = dict
) -> Iterator[Step]:
    def noted(done: Future[Any]) -> None:
        caller.answer = {**changed(done), **more()}

    return iter([(lambda: future, noted)])


def turning(caller: Caller, future: Future[CreatedGroup]) -> Iterator[Step]:
    def noted(done: Future[Any]) -> None:
        caller.answer = turned(done)

    return iter([(lambda: future, noted)])


def repairing(caller: Caller, begun: Mapping[int, Future[None]]) -> Iterator[Step]:
    caller.answer = {"repaired": [], "failed": []}

    def noted(group: int, done: Future[Any]) -> None:
        if (error := done.exception()) is None:
            caller.answer["repaired"].append(group)
        else:
            caller.answer["failed"].append(failed(group, error))

    return ((partial(same, future), partial(noted, group)) for group, future in begun.items())


def same(future: Future[Any]) -> Future[Any]:
    return future


def failed(group: int, error: BaseException) -> dict[str, Any]:
    return {"group": group, "why": f"{type(error).__name__}: {error}"}


def peers_of(peers: PeerList) -> dict[str, Any]:
    found = [asdict(peer) for _, peer in sorted(peers.statuses().items())]
    for peer in found:
        del peer["detail"]
    return {"peers": found}


def taken(answer: dict[str, Any], group: int, future: Future[CheckpointInfo]) -> None:
    error = future.exception()
    if error is None:
        answer["taken"].append(asdict(future.result()))
    else:
        answer["failed"].append(failed(group, error))


def moved(answer: dict[str, Any], future: Future[Moved]) -> None:
    if (error := future.exception()) is not None:
        answer["error"] = f"{type(error).__name__}: {error}"
        return
    found = future.result()
    for group, leader in sorted(found.moved.items()):
        answer["moved"].append({"group": group, "node": leader.node, "epoch": leader.epoch})
    answer["failed"] = [{"group": group, "why": why} for group, why in found.failed.items()]


def ask(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request to the node that runs in a folder, and wait for its answer, however long.

    Raises SystemFailure: none runs there, or it went away meanwhile.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(CONNECT_S)
            with address_in(folder) as address:
                connection.connect(address)
            connection.settimeout(None)
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
        except (FileNotFoundError, ConnectionError) as error:
            raise SystemFailure(f"no node runs in {folder}") from error
        with connection.makefile("rb") as opened:
            try:
                line = opened.readline()
            except ConnectionError:
                line = b""
    if not line.endswith(b"\n"):
        raise SystemFailure(f"the node in {folder} went away before it answered")
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextmanager
def address_in(folder: Path) -> Iterator[str]:
    """An address of the socket in a folder, which may lie deeper than an address can say.

    Raises OSError if there is no other way to say it here.
    """
    plain = str(folder.absolute() / NAME)
    if len(os.fsencode(plain)) <= PATH_BYTES_MAX:
        yield plain
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{descriptor}"
        if not os.path.isdir(short):
            raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket", plain)
        yield f"{short}/{NAME}"
    finally:
        os.close(descriptor)
