"""Members of groups change: the calls, at any node.

one change     compare-and-set on the version. Who leads proposes it (`Changes.propose`); any other
               node asks the one that leads to (CHANGE, phx/transfer/changing.py), and looks in its
               own news, and in that node's answers, for what came of it
a goal         "4 in the place of 1": first those who are new become learners, which changes no
               quorum, then the members are what they are to be, as soon as a quorum of them has
               caught up (docs/design/membership.md, section 3)
all groups     the same of every group of a node, some at a time: all learners first, for a node
               that joins begins when every group of it has it

To ask again is safe: of one version only one configuration is ever chosen, so the same change
proposed twice is one change. So a change is asked for until it is known what became of it, by
whoever leads then; only who runs out of time does not know.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

from phx._core.driver import DriverError
from phx._core.member_table import (
    CHANGE_BUSY,
    CHANGE_CONFLICT,
    CHANGE_NO_SLOT,
    CHANGE_NOT_CAUGHT_UP,
    CHANGE_NOT_LEADING,
    CHANGE_UNDER_WAY,
    CHANGE_UNSOUND,
    MemberTable,
)
from phx.applier import GroupState
from phx.door import Door
from phx.errors import (
    ChangeUnderWay,
    Closed,
    ConfigError,
    ForkedError,
    GroupStopped,
    NoQuorum,
    NotCaughtUp,
    NotInCluster,
    Overloaded,
    PhxError,
    Rejected,
    TimedOut,
    VersionConflict,
)
from phx.membership import Membership
from phx.node.fetcher import Peers
from phx.node.goals import (
    Goal,
    Wanted,
    adding,
    concerns,
    overtaken,
    removed,
    removing,
    replacing,
    sound,
    unknown,
    votes,
    with_learners,
)
from phx.node.line import Ending, Lines, now_us
from phx.node.memberships import Memberships
from phx.node.peers import Introducer, PeerList
from phx.node.threads import Calls, join_all
from phx.stops import parked
from phx.transfer.changing import (
    Answer,
    Page,
    ask_change,
    ask_members,
    pack_members,
    unpack_answer,
    unpack_members,
)
from phx.transfer.messages import Cut, Declined, Ends
from phx.types import DIRECTORY_GROUP, Changed, Member, Members, Role

__all__ = [
    "AT_ONCE",
    "CHANGE_REUSED",
    "CHANGE_UNASKED",
    "CHANGE_UNMET",
    "CHANGE_UNREACHED",
    "Changes",
]

log = logging.getLogger("phx")

CHANGE_REUSED = 32
"""Beside the engine's verdicts: somebody among them was a member before, and left."""
CHANGE_UNREACHED = 33
"""The leader did not say what came of it."""
CHANGE_UNASKED = 34
"""The leader was not asked, or could not look at it then: it is not proposed."""
CHANGE_UNMET = 35
"""The leader cannot be connected with those who are new: it is not proposed."""

AT_ONCE = 16
"""So many groups of a node are changed at a time."""
LEFT_S = 1.0
"""So long other members are waited for that may know who left."""
AGAIN_S = 0.02
LAG_S = 0.1
AGAIN_MAX_S = 0.25
"""Between two times that a change is asked for, at first and at most."""

PASSING = (Closed, ForkedError, TimedOut, NoQuorum, ChangeUnderWay, Overloaded, GroupStopped)
"""What a call ends with that might have gone well at another time."""

T = TypeVar("T")


class Changes:
    """Of one node, while it is open. Any thread.

    Args:
        door: the driver behind it runs.
        at: who can be asked, and where.
    """

    def __init__(
        self,
        door: Door,
        states: Mapping[int, GroupState],
        memberships: Memberships,
        peers: PeerList,
        introducer: Introducer,
        at: Peers,
    ) -> None:
        self._door = door
        self._states = states
        self._memberships = memberships
        self._table = MemberTable(door.driver)
        self._peers = peers
        self._introducer = introducer
        self._at = at
        self.is_created: Callable[[int], bool] = lambda group: False
        """Whether a group was created while the cluster ran. Its new members hear of it by the
        directory, so they are members of that before."""
        self._waiting: Counter[int] = Counter()  # calls, by group
        self._window = at.greeting.window
        self._lines = Lines()
        self._calls = Calls("phx-change", "change members")
        self._lock = threading.Lock()

    # --- what is asked of this node by others

    def propose(self, group: int, roster: bytes) -> Answer:
        """Propose it if this node leads. Raises PhxError, DriverError, ValueError."""
        state = self._states.get(group)
        leader = 0 if state is None or state.led is None else state.led.node
        if leader != self._door.node:
            return Answer(CHANGE_NOT_LEADING, leader)
        told = Membership(roster, 1, 1).members()
        now = self._memberships.now(group)
        self._memberships.hear()
        if self._memberships.version(group) != now.version or told.version > now.version + 1:
            return Answer(CHANGE_BUSY, leader)  # who left with the newest change is not known yet
        new = told.by_id.keys() - now.by_id.keys() if told.version == now.version + 1 else set()
        if new and (self._memberships.left(group) | self._left_elsewhere(group, now)) & new:
            return Answer(CHANGE_REUSED, leader)
        for node in new:
            if node != self._door.node:
                self._introducer.unwanted(node)
                if not self._peers.is_peer(node):
                    self._peers.add(node, told.by_id[node].address)
                    self._introducer.unwanted(node)
        return Answer(self._table.change(group, roster), leader)

    def answer(self, group: int, roster: bytes) -> Answer:
        """The same for a peer that asks for it: whatever happens here, it is told a verdict."""
        try:
            return self.propose(group, roster)
        except Exception as error:
            expected = isinstance(error, PhxError | DriverError | ValueError)
            log.warning(
                "group %d: a change of its members is not proposed: %s",
                group, error, exc_info=None if expected else error,
            )  # fmt: skip
            if isinstance(error, ConfigError):
                return Answer(CHANGE_UNMET, self._door.node)
            unsound = isinstance(error, ValueError)
            return Answer(CHANGE_UNSOUND if unsound else CHANGE_UNASKED, self._door.node)

    def tell(self, group: int) -> bytes:
        """Who the members of a group are, and how far this node is in it. Raises PhxError."""
        newest = self._memberships.newest(group)
        rows = [] if newest is None else [(group, newest, self._memberships.left(group))]
        return pack_members(rows, self._chosen(group))

    def _chosen(self, group: int) -> int:
        """Through here all is known to be chosen, here; 0 for a group that is not hosted."""
        if group not in self._states:
            return 0
        try:
            return int(self._door.driver.group_status(group)["chosen_through"])
        except DriverError as error:
            raise self._door.error_of(error) from error

    # --- calls

    def set_members(
        self,
        group: int | GroupState,
        members: Mapping[int, Member],
        version: int | None,
        timeout: float,
    ) -> Future[Members]:
        """See Group.set_members."""
        found = sound(members)  # before anything is begun
        until_s = time.monotonic() + timeout
        state = self._check(group)
        return self._calls.begin(lambda: self._set(state, found, version, until_s))

    def add(
        self, group: int | GroupState, node: int, address: str, role: Role, timeout: float
    ) -> Future[Members]:
        """See Group.add_member."""
        return self.toward(group, adding(node, address, role), timeout)

    def remove(self, group: int | GroupState, node: int, timeout: float) -> Future[Members]:
        """See Group.remove_member."""
        return self.toward(group, removing(node), timeout)

    def replace(
        self, group: int | GroupState, node: int, by: int, address: str, timeout: float
    ) -> Future[Members]:
        """See Group.replace_member."""
        return self.toward(group, replacing(node, by, address), timeout)

    def members(self, group: int | None) -> dict[int, Members]:
        """As this node knows them: of a group, or of all. Raises NotInCluster, Closed."""
        if group is not None and group not in self._states:
            raise NotInCluster(f"group {group} is not hosted by this node")
        groups = list(self._states) if group is None else [group]
        there = [state for one in groups if (state := self._states.get(one)) is not None]
        return {state.group: self._door.members_now(state) for state in there}

    def all_to(self, goal: Goal, timeout: float, group: int | None = None) -> Future[Changed]:
        """The same of all groups that this node is a member of, or of this one."""
        until_s = time.monotonic() + timeout
        self._door.open_driver()
        mine = list(self._states.values()) if group is None else [self._check(group)]
        if group is None:
            mine = [one for one in mine if one.group not in self._memberships.removed]
            mine = [one for one in mine if not self._idle(one, goal)]
        return self._calls.begin(lambda: self._reach_all(mine, goal, until_s))

    def _idle(self, state: GroupState, goal: Goal) -> bool:
        """Whether it is a created group, and who is to be replaced is none of its members."""
        with suppress(PhxError, ValueError):  # whoever changes it says so
            return self.is_created(state.group) and not concerns(goal, self._now(state).by_id)
        return False

    def toward(self, group: int | GroupState, goal: Goal, timeout: float) -> Future[Members]:
        """Make the members what `goal` says, those who are new being learners first."""
        until_s = time.monotonic() + timeout
        state = self._check(group)
        now = self._now(state).by_id
        self._near(state, now, sound(goal(now)))  # raises what it does before anything is begun
        return self._calls.begin(lambda: self._reach(state, goal, until_s))

    def _check(self, group: int | GroupState) -> GroupState:
        """The group that is meant: a call is of that one alone, and of none that has its id after
        it was deleted."""
        self._door.open_driver()
        state = self._states.get(group) if isinstance(group, int) else group
        if state is None:
            raise NotInCluster(f"group {group} is not hosted by this node")
        self._need(state)
        return state

    def _need_there(self, state: GroupState) -> None:
        """Raises NotInCluster: it was deleted meanwhile."""
        if self._states.get(state.group) is not state:
            raise NotInCluster(f"group {state.group} is not hosted by this node any more")

    def _need(self, state: GroupState) -> None:
        """The same where it goes on without this node."""
        self._need_there(state)
        if state.group in self._memberships.removed:
            raise removed(state.group, self._door.node)

    def end(self, wait_s: float | None = None) -> None:
        """Nothing more is asked for; calls that wait end. Idempotent."""
        self._lines.ending.set()
        self._memberships.stir()
        self._calls.end(wait_s)

    def forget(self) -> None:
        """In a forked child."""
        self._lines.forget()

    # --- all groups

    def _reach_all(self, groups: list[GroupState], goal: Goal, until_s: float) -> Changed:
        changed = Changed({}, {})

        def learners(state: GroupState) -> object:
            target = goal(self._now(state).by_id)
            return self._reach(state, lambda now: with_learners(now, target), until_s)

        # (First the directory: by that a new member hears that it is to host the others.)
        first = [state for state in groups if state.group == DIRECTORY_GROUP]
        self._each(first, learners, changed)
        self._each([state for state in groups if state not in first], learners, changed)
        rest = [state for state in groups if state.group not in changed.failed]

        def whole(state: GroupState) -> None:
            changed.done[state.group] = self._reach(state, goal, until_s)

        self._each(rest, whole, changed)
        return changed

    def _each(
        self, groups: list[GroupState], work: Callable[[GroupState], object], changed: Changed
    ) -> None:
        """Whatever happens, each of them that is not worked through is in ``changed.failed``."""
        line, lock = iter(groups), threading.Lock()

        def worker() -> None:
            while True:
                with lock:
                    state = next(line, None)
                if state is None:
                    return
                try:
                    work(state)
                except Exception as error:
                    changed.failed[state.group] = f"{type(error).__name__}: {error}"
                    if not isinstance(error, PhxError | ValueError):
                        log.exception("group %d: a change of its members", state.group)

        threads = []
        with suppress(RuntimeError):  # no more can be had now: those that there are do it
            for _ in range(min(AT_ONCE, len(groups)) - 1):
                one = threading.Thread(target=worker, name="phx-changes", daemon=True)
                one.start()
                threads.append(one)
        worker()
        join_all(threads, None)

    # --- one group

    def _reach(self, state: GroupState, goal: Goal, until_s: float) -> Members:
        """A step that was done stays: then no error says that nothing was, but those that say
        what this goal lacks (NotCaughtUp, ConfigError, NotInCluster)."""
        done: list[Members] = []
        try:
            return self._steps(state, goal, until_s, done)
        except PASSING as error:
            if not done:
                raise
            what = (
                f"group {state.group}: version {done[-1].version} is active, and not what is wanted"
            )
            raise unknown(what, error) from error

    def _steps(self, state: GroupState, goal: Goal, until_s: float, done: list[Members]) -> Members:
        group = state.group
        while True:
            now = self._now(state)
            target = goal(now.by_id)
            if target == now.by_id and now.active:
                return now
            step = with_learners(now.by_id, target)
            last = step == now.by_id
            if target == now.by_id:
                self._again(until_s, AGAIN_S, ChangeUnderWay(group))
                continue
            if last and (lag := self._far(state, now, target, until_s)):
                self._again(until_s, LAG_S, NotCaughtUp(group, lag))
                continue
            try:
                made = self._set(state, target if last else step, now.version, until_s)
            except VersionConflict:  # somebody was quicker: from there, then
                late = TimedOut(f"group {group}: its members are not yet what they are to be")
                self._again(until_s, AGAIN_S, late)
                continue
            if last:
                return made
            done.append(made)

    def _again(self, until_s: float, pause_s: float, late: PhxError) -> None:
        """In a moment, if there is time. Raises `late`; Closed."""
        if time.monotonic() >= until_s:
            raise late
        if self._lines.ending.wait(pause_s):
            raise Closed("the node is closed")

    def _far(
        self, state: GroupState, now: Members, target: Mapping[int, Member], until_s: float
    ) -> list[int]:
        """Learners that are to vote, and are not near yet by what they say themselves. (Whoever
        leads only makes sure of a quorum.)"""
        group, chosen, far = state.group, self._chosen(state.group), []
        for node, one in sorted(target.items()):
            if not votes(one) or node == self._door.node:
                continue
            if node not in now.by_id or votes(now.by_id[node]):
                continue
            there = 0
            with suppress(KeyError, OSError, Cut, Ending):
                there = self._told_by(node, group, until_s).chosen
            if there + self._window // 4 < chosen or (chosen and not there):
                far.append(node)
        return far

    def _set(
        self, state: GroupState, members: dict[int, Member], version: int | None, until_s: float
    ) -> Members:
        now = self._now(state)
        self._near(state, now.by_id, members)
        members = {node: self._located(node, one) for node, one in members.items()}
        if version is None:
            version = now.version
        if now.version != version and (later := self._beyond(state, now.version, version, until_s)):
            raise VersionConflict(state.group, later)
        new = tuple(
            node
            for node, one in sorted(members.items())
            if votes(one) and (node not in now.by_id or not votes(now.by_id[node]))
        )
        return self._ask(Wanted(state, version + 1, members, new, until_s), now)

    def _near(
        self, state: GroupState, now: Mapping[int, Member], target: Mapping[int, Member]
    ) -> None:
        """Raises NotInCluster: of a created group a node is to be a member that would not hear."""
        group, new = state.group, target.keys() - now.keys()
        if not new or not self.is_created(group):
            return
        there = self._door.members_now(self._states[DIRECTORY_GROUP]).by_id
        if strange := sorted(new - there.keys()):
            raise NotInCluster(
                f"group {group} was created, and node {strange[0]}, which is no member of the "
                f"directory, would not hear that it is to host it: group {DIRECTORY_GROUP} is to "
                "have it first"
            )

    def _located(self, node: int, one: Member) -> Member:
        """Where port 0 is said ("not known yet"), what is known by now."""
        if not one.address.endswith(":0"):
            return one
        return Member(one.role, self._peers.texts().get(node, one.address))

    def _beyond(
        self, state: GroupState, known: int, version: int, until_s: float
    ) -> Members | None:
        """Members of another version than that which a caller means, if there are; this node may
        only be the last to hear."""
        newest = self._elsewhere(state, until_s)
        return newest if known > version or newest.version != version else None

    def _ask(self, wanted: Wanted, now: Members) -> Members:
        """Until it is known what became of it.

        Once it may have been proposed (``wanted.perhaps``) only one thing says that it is not
        chosen: that others are the members of its version. Whatever else ends it is Unknown.
        """
        with self._lock:
            self._waiting[wanted.group] += 1
        try:
            return self._asked_for(wanted, now)
        except VersionConflict:
            raise
        except Rejected as error:
            if not wanted.perhaps:
                raise
            what = f"group {wanted.group}: whether the members of version {wanted.version} become "
            raise unknown(what + "active is not known, members() says", error) from error
        finally:
            with self._lock:
                self._waiting -= Counter([wanted.group])  # (which keeps none that are 0)

    def busy(self, group: int) -> bool:
        """Whether somebody waits here for what becomes of a change of its members."""
        return self._waiting[group] > 0

    def _asked_for(self, wanted: Wanted, now: Members) -> Members:
        group, pause = wanted.group, AGAIN_S
        refusal: PhxError = NoQuorum(f"group {group}: nobody is known to lead it")
        while True:
            found = self._outcome(wanted)
            if found is not None:
                return found
            if self._lines.ending.is_set():
                raise Closed("the node is closed")
            verdict = None
            try:
                verdict = self._submit(wanted)
            except Overloaded as error:  # for a moment
                refusal = error
            if verdict in (CHANGE_UNDER_WAY, CHANGE_UNREACHED):
                wanted.perhaps = True
            elif verdict == CHANGE_CONFLICT:
                self._conflict(wanted)
            elif verdict is not None and not wanted.perhaps:
                refusal = self._refused(wanted, now, verdict) or refusal
            left_s = min(pause, wanted.until_s - time.monotonic())
            pause = min(2 * pause, AGAIN_MAX_S)
            if left_s > 0 and self._memberships.wait(
                lambda: self._outcome(wanted) is not None or self._lines.ending.is_set(), left_s
            ):
                continue
            if time.monotonic() >= wanted.until_s:
                if wanted.perhaps:
                    refusal = TimedOut("the time is up")
                raise refusal

    def _conflict(self, wanted: Wanted) -> None:
        """The leader has other members than this node; ours, if that is the change that was asked
        for. Raises VersionConflict; TimedOutUnknown: others have followed since."""
        newest = self._elsewhere(wanted.state, wanted.until_s)
        if newest.version < wanted.version:
            return  # it is heard of soon
        if newest.version > wanted.version and wanted.perhaps:
            raise overtaken(wanted, newest.version)
        if newest.by_id != wanted.members or newest.version > wanted.version:
            raise VersionConflict(wanted.group, newest)

    def _refused(self, wanted: Wanted, now: Members, verdict: int) -> PhxError | None:
        """What the call ends with if it is still so in the end. Raises what does not change."""
        group = wanted.group
        if verdict == CHANGE_NOT_CAUGHT_UP:
            lag = NotCaughtUp(group, wanted.newcomers)
            there = [votes(one) for node, one in wanted.members.items() if node in now.by_id]
            if 2 * sum(there) <= sum(map(votes, wanted.members.values())):
                raise lag  # nobody sends anything to those who are not even learners
            return lag
        elif verdict == CHANGE_BUSY:
            return ChangeUnderWay(group)
        elif verdict == CHANGE_REUSED:
            raise ConfigError(
                [f"group {group}: a node that left it is never a member again: take a new id"]
            )
        elif verdict == CHANGE_UNASKED:
            return NoQuorum(f"group {group}: its leader could not be asked")
        elif verdict == CHANGE_UNMET:
            raise ConfigError([f"group {group}: its leader cannot connect with the new members"])
        elif verdict == CHANGE_NO_SLOT:
            raise ConfigError([f"group {group}: its leader has 63 other nodes already"])
        elif verdict == CHANGE_UNSOUND:
            raise ConfigError([f"group {group}: these cannot be the members"])
        return None

    # --- what became of it

    def _outcome(self, wanted: Wanted) -> Members | None:
        """The members, if they are active, by what is known here; None: not yet.

        Raises VersionConflict: others are.
        """
        # The newest first: of no version up to that nothing is known by then but of an old one.
        newest = self._memberships.newest(wanted.group)
        told = self._memberships.of_version(wanted.group, wanted.version)
        self._need_there(wanted.state)  # so that was of this group
        if told is not None and told.members().by_id != wanted.members:
            raise VersionConflict(wanted.group, told.members())
        if newest is None or newest.version < wanted.version:
            return None
        if told is None:
            raise overtaken(wanted, newest.version)
        # (Nobody is let propose the next one before.)
        if told.active or newest.version > wanted.version:
            return Members(wanted.version, True, told.members().by_id)
        return None

    def _now(self, state: GroupState) -> Members:
        self._door.open_driver()
        self._need(state)
        if state.parked:  # nobody leads it
            raise parked(state)
        return self._door.members_now(state)

    # --- asking the leader

    def _submit(self, wanted: Wanted) -> int:
        """A verdict. Raises PhxError: it was not proposed."""
        led = wanted.state.led
        self._need_there(wanted.state)
        if led is None:
            return CHANGE_NOT_LEADING
        if led.node != self._door.node:
            return self._asked(led.node, wanted)
        try:
            return self.propose(wanted.group, wanted.roster()).verdict
        except DriverError as error:
            raise self._door.error_of(error) from error

    def _asked(self, node: int, wanted: Wanted) -> int:
        ends = Ends(self._at.cluster, self._at.node, node)
        roster = wanted.roster()
        question = ask_change(ends, self._at.greeting, wanted.group, roster, now_us())
        try:
            one = self._dial(node, wanted.until_s)
        except (KeyError, OSError, Cut, Ending):
            return CHANGE_UNASKED
        try:
            moot = partial(self._leads_no_more, wanted.group, node, wanted.until_s)
            return unpack_answer(self._lines.ask(one, question, moot)).verdict
        except Declined as error:  # its transport, before anybody looked at what was asked
            log.debug("group %d: node %d: %s", wanted.group, node, error)
            return CHANGE_UNASKED
        except (OSError, Cut, Ending) as error:
            log.debug("group %d: node %d did not answer: %s", wanted.group, node, error)
            return CHANGE_UNREACHED

    def _elsewhere(self, state: GroupState, until_s: float) -> Members:
        """The newest that this node or the leader's knows of."""
        group, newest, led = state.group, self._door.members_now(state), state.led
        self._need_there(state)
        if led is None or led.node == self._door.node:
            return newest
        with suppress(KeyError, OSError, Cut, Ending):
            moot = partial(self._leads_no_more, group, led.node, until_s)
            told = self._told_by(led.node, group, until_s, moot).members.get(group)
            if told is not None and told.version > newest.version:
                return told.members()
        return newest

    def _left_elsewhere(self, group: int, now: Members) -> set[int]:
        """Who left it, as other members know: this node may have lost its store, or gone past a
        change by a checkpoint. Who does not say so at once is not waited for."""
        found: set[int] = set()
        until_s = time.monotonic() + LEFT_S
        for node in sorted(self._at.connected() & now.by_id.keys()):
            if time.monotonic() >= until_s:
                break
            with suppress(KeyError, OSError, Cut, Ending, PhxError):
                told = self._told_by(node, group, until_s)
                found.update(told.left.get(group, ()))
        return found

    def _leads_no_more(self, group: int, node: int, until_s: float) -> bool:
        """As far as is known here; or the time is up. Who fell silent is not waited for then:
        another may lead."""
        state = self._states.get(group)  # None: the group was deleted
        return (
            time.monotonic() >= until_s
            or state is None
            or state.led is None
            or state.led.node != node
        )

    def _dial(self, node: int, until_s: float) -> socket.socket:
        """Raises KeyError, OSError, Cut, Ending."""
        left_us = max(0, int((until_s - time.monotonic()) * 1e6))
        return self._lines.dial(*self._at.at(node), min(left_us, self._at.timeout_us))

    def _told_by(
        self, node: int, group: int, until_s: float, moot: Callable[[], bool] | None = None
    ) -> Page:
        """What a peer knows of a group. Raises KeyError, OSError, Ending, Cut: also when the time
        is up."""
        ends = Ends(self._at.cluster, self._at.node, node)
        question = ask_members(ends, self._at.greeting, group, now_us())
        one = self._dial(node, until_s)
        late = moot or (lambda: time.monotonic() >= until_s)
        return unpack_members(self._lines.ask(one, question, late), group)
