"""Groups that are created, stopped and deleted while the cluster runs: the calls, at any node.

A call is a value in the directory, which is what counts; then it waits until this node is as the
directory says (`phx.node.hosting`). Other nodes do what concerns them as they hear.

To call again is safe: a group that is there with the same members was created, one that is gone was
deleted. So after an Unknown the same call says what came of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from phx.config import Config
from phx.errors import (
    ClosedUnknown,
    ConfigError,
    GroupExists,
    NotInCluster,
    TimedOut,
    TimedOutUnknown,
)
from phx.machines.directory import (
    GENERATION_MAX,
    Answer,
    GroupRow,
    encode_create,
    encode_delete,
    encode_resume,
    encode_stop,
)
from phx.node.goals import Goal, exactly
from phx.node.hosting import Hosting, Parts
from phx.node.keeper import Keeper
from phx.node.line import Ending
from phx.node.threads import Calls
from phx.store import Store
from phx.store_hosted import HostedRow, clean, prepare, read
from phx.types import DIRECTORY_GROUP, CreatedGroup, Role, voter

__all__ = ["Groups", "open_created"]

SLICE_S = 0.2

T = TypeVar("T")


class Groups:
    """Of one node, while it is open. Any thread."""

    def __init__(self, config: Config, hosting: Hosting, parts: Parts) -> None:
        self._config = config
        self._hosting = hosting
        self._parts = parts
        self._configured = frozenset(config.hosted_ids)
        self._calls = Calls("phx-create", "create or delete groups")

    # --- calls: each raises what is known at once

    def create(
        self, group: int, members: Iterable[int] | None, timeout: float
    ) -> Future[CreatedGroup]:
        """See Node.create_group."""
        until_s = self._until(timeout)
        self._not_configured(group)
        value = encode_create(group, self.located(members))
        return self._calls.begin(lambda: self._create(group, value, until_s))

    def stop(self, group: int, timeout: float) -> Future[CreatedGroup]:
        """See Node.stop_group."""
        return self._turn(group, encode_stop, self._is_stopped, timeout)

    def resume(self, group: int, timeout: float) -> Future[CreatedGroup]:
        """See Node.resume_group."""
        return self._turn(group, encode_resume, self._is_live, timeout)

    def delete(self, group: int, timeout: float) -> Future[CreatedGroup]:
        """See Node.delete_group."""
        return self._turn(group, encode_delete, self._is_gone, timeout)

    def all(self) -> list[CreatedGroup]:
        """As this node has heard, by id."""
        self._parts.door.open_driver()
        return [said(group, row) for group, row in sorted(self._hosting.rows().items())]

    def destination(self, group: int, nodes: Iterable[int]) -> Goal:
        """Exactly these nodes, all of which vote. Raises NotInCluster: one of them is no member of
        the directory, or the group is none that was created and is hosted here; Closed."""
        where = self.located(nodes)
        if not self._hosting.hosted(group):
            raise NotInCluster(f"group {group} was not created, or is not hosted by this node")
        return exactly({node: voter(at) for node, at in where.items()})

    def located(self, members: Iterable[int] | None) -> dict[int, str]:
        """Where they are, by the directory's members; default: all that vote. Raises NotInCluster,
        Closed."""
        parts = self._parts
        parts.door.open_driver()
        there = parts.door.members_now(parts.states[DIRECTORY_GROUP]).by_id
        if members is None:
            return {node: one.address for node, one in there.items() if one.role == Role.VOTER}
        wanted = list(members)
        if missing := [node for node in wanted if node not in there]:
            raise NotInCluster(f"node {missing[0]} is no member of the directory")
        return {node: there[node].address for node in wanted}

    def why(self, group: int) -> str:
        """What is in the way of a group's being here as the directory says; "": nothing."""
        return self._hosting.failed.get(group, "")

    def end(self, wait_s: float | None = None) -> None:
        """Calls that wait end. Idempotent."""
        self._calls.end(wait_s)

    # --- before it is begun

    def _until(self, timeout: float) -> float:
        self._parts.door.open_driver()
        return time.monotonic() + timeout

    def _not_configured(self, group: int) -> None:
        if group in self._configured:
            raise GroupExists(group, "configured")

    # --- in a thread of its own

    def _create(self, group: int, value: bytes, until_s: float) -> CreatedGroup:
        answer = self._propose(value, until_s)
        row = answer.row
        if not answer.done or row is None:
            if row is None or row.phase != "gone":
                raise GroupExists(group, "taken" if row is None else row.phase)
            raise ConfigError([f"group {group} was created {GENERATION_MAX} times: take another"])

        def there() -> bool:
            if self._parts.node not in row.nodes:
                return True
            now = self._hosting.rows().get(group)
            over = now is not None and (
                now.generation > row.generation
                or now.phase == "gone"
                or self._parts.node not in now.nodes  # it was moved away meanwhile
            )
            return over or self._hosting.hosted(group) >= row.generation

        self._wait(there, until_s, f"group {group} was created, and is not hosted here yet")
        return said(group, row)

    def _turn(
        self,
        group: int,
        encode: Callable[[int, int], bytes],
        holds: Callable[[int, int], bool],
        timeout: float,
    ) -> Future[CreatedGroup]:
        until_s = self._until(timeout)

        def work() -> CreatedGroup:
            row = self._row(group, until_s)
            if row is None or row.phase == "gone":
                raise NotInCluster(f"there is no group {group} that was created")
            answer = self._propose(encode(group, row.generation), until_s)
            if not answer.done or answer.row is None:
                raise GroupExists(group, "changed meanwhile" if answer.row is None else
                                  answer.row.phase)  # fmt: skip
            what = f"group {group}: the directory has it, and this node has not done it yet"
            self._wait(lambda: holds(group, row.generation), until_s, what)
            return said(group, self._hosting.rows().get(group, answer.row))

        return self._calls.begin(work)

    def _mine(self, group: int, generation: int) -> bool:
        row = self._hosting.rows().get(group)
        return row is not None and row.generation == generation and self._parts.node in row.nodes

    def _is_stopped(self, group: int, generation: int) -> bool:
        return not self._mine(group, generation) or self._hosting.is_stopped(group)

    def _is_live(self, group: int, generation: int) -> bool:
        return not self._mine(group, generation) or not self._hosting.is_stopped(group)

    def _is_gone(self, group: int, generation: int) -> bool:
        row = self._hosting.rows().get(group)
        over = row is not None and (row.generation > generation or row.phase == "gone")
        return over and self._hosting.is_gone(group, generation)

    def _wait(self, holds: Callable[[], bool], until_s: float, late: str) -> None:
        try:
            if not self._hosting.wait(holds, until_s):
                raise TimedOutUnknown(late)
        except Ending:
            raise ClosedUnknown(f"the node closed: {late}") from None

    # --- the directory, from any thread

    def _propose(self, value: bytes, until_s: float) -> Answer:
        parts, future = self._parts, Future[Any]()
        state = parts.states[DIRECTORY_GROUP]

        def submit() -> None:
            try:
                with parts.door.lock:
                    parts.door.submit(state, future, value, self._left(until_s), 0)
            except BaseException as error:
                future.set_exception(error)

        parts.applier.soon(submit)
        parts.driver.poke()
        try:
            answer: Answer = self._result(future).value
        except Ending:
            raise ClosedUnknown("the node closed; the directory may come to have it") from None
        return answer

    def _row(self, group: int, until_s: float) -> GroupRow | None:
        """What the directory says now: all that was done before is in it."""
        parts, future = self._parts, Future[Any]()
        state = parts.states[DIRECTORY_GROUP]
        wanted = parts.door.wanted(state, future, [group], "linearizable", self._left(until_s), 0)
        try:
            read = self._result(future, until_s)
        finally:
            if not future.done():
                parts.door.reading.give_up(wanted)
        rows: Mapping[int, GroupRow] = read[0].value[1]
        return rows.get(group)

    def _left(self, until_s: float) -> float:
        return max(0.0, until_s - time.monotonic())

    def _result(self, future: Future[Any], until_s: float | None = None) -> Any:
        while True:
            try:
                return future.result(SLICE_S)
            except TimeoutError:
                if future.done():
                    raise
                if self._calls.ending:
                    raise Ending from None
                if until_s is not None and time.monotonic() >= until_s:
                    raise TimedOut("the directory could not be read in time") from None


def said(group: int, row: GroupRow) -> CreatedGroup:
    return CreatedGroup(
        group=group, generation=row.generation, phase=row.phase, members=dict(row.members)
    )


def open_created(store: Store, config: Config, keeper: Keeper) -> dict[int, HostedRow]:
    """Which created groups are or were hosted here, at a start; what a crash left half done of them
    in the store is done.

    Raises ConfigError: the file cannot go with them; Damaged, StoreError.
    """
    rows = read(store)
    if rows and not config.directory:
        raise ConfigError([f"directory: group {min(rows)} was created here, so it must be true"])
    if both := sorted(rows.keys() & set(config.hosted_ids)):
        raise ConfigError([f"groups: group {both[0]} was created here, by the directory"])

    def settle(store: Store) -> None:
        for group, row in rows.items():
            if row.gone:
                clean(store, group)
            else:
                prepare(store, group, row)

    keeper.ask(settle).result()
    return rows
