from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

from phx._core.delivery import Batch, Sessions
from phx._core.options import DriverError as DriverError
from phx._core.plan import SettlePlan
from phx._core.published import ReadPoints
from phx.store_facts import Facts

# codes of DriverError
ERROR_CLOSED: Final = 1  # stopped, or not started
ERROR_OVERLOADED: Final = 2  # a queue is full: nothing was taken
ERROR_UNKNOWN_GROUP: Final = 3
ERROR_TOO_LARGE: Final = 4  # a value above value_bytes_max
ERROR_OPTION: Final = 5  # an option, address or member that cannot be
ERROR_BIND: Final = 6  # message: the system's reason
ERROR_SYSTEM: Final = 7  # thread, descriptor
ERROR_TIMED_OUT: Final = 8  # stop() could not join in time; it may be called again
ERROR_FORKED: Final = 9  # this process is a fork of the one that made the driver
NO_SYNC: Final = 0xFFFFFFFFFFFFFFFF
ERROR_START: Final = 10  # a start that the log or the session table cannot follow; not paused
ERROR_MEMBER: Final = 11  # the node is a member of a group here
ERROR_GRANTED: Final = 12  # it may lead under a grant that has not run out
# -JournalError is added to this: 101 I/O, 102 damaged, 103 foreign, 104 version, 105 full,
# 106 poisoned, 108 exists, 109 missing
ERROR_JOURNAL: Final = 100

TRANSFER_UNDER_WAY: Final = 0
TRANSFER_NOT_LEADING: Final = 1
TRANSFER_NOT_READY: Final = 2

# kinds of events() beyond those of the engine (engine.pxd: 1 failed, 2 leader, 3 halted,
# 4 peer refused, 5 no log brings the group on)
EVENT_FAILED: Final = 1
EVENT_LEADER: Final = 2
EVENT_HALTED: Final = 3
EVENT_PEER_REFUSED: Final = 4
EVENT_BELOW: Final = 5
EVENT_CEILING: Final = 6
EVENT_POISONED: Final = 64  # the journal failed: this node votes no more
EVENT_PRESSED: Final = 65  # whether it takes new values, and why not (upkeep.pyx, PRESSED_*)

GROUP_BYTES: dict[str, int]  # native structs of a group; for benchmarks/idle.py

class Driver:
    """A node's native half: engine, journal, sockets and the threads that run them.

    Every method may be called from any thread. None of them blocks for longer than one turn of
    the poll thread, except ``start``, ``stop`` and ``store_work``, which release the GIL.
    """

    sessions: Sessions
    points: ReadPoints
    port: int
    incarnation: int
    clean: bool
    """It was stopped, and all that it wrote is durable."""
    def __init__(
        self,
        *,
        cluster: int,
        node: int,
        store_id: bytes,
        members: Sequence[tuple[int, str, int]],
        bind: tuple[str, int] | None,
        groups: Sequence[int],
        settled: Mapping[int, int],
        journal_dir: str,
        create: bool,
        options: Mapping[str, int],
        starts: Mapping[int, int] | None = None,
        floors: Mapping[int, int] | None = None,
        incarnation: int = 0,
        facts: Facts | None = None,
        suspect: Collection[int] = (),
        peers: Sequence[tuple[int, str, int]] = (),
        named: Collection[int] = (),
        trace_path: str | None = None,
        trace_bytes_max: int = 1 << 30,
        generations: Mapping[int, int] | None = None,
        gone: Mapping[int, int] | None = None,
    ) -> None:
        """Prepare a node; nothing is opened before ``start``.

        Guarantee: of each group ``take`` gives every chosen instance once, in order, from K + 1
        on; K: see ``starts``. What was accepted and is not known to be chosen after this start is
        not given, whatever K is, and no acceptance at or below K passes for chosen: flow.pxd has
        the argument, and the run that breaks the shortcut.

        Args:
            members: ``(node id, numeric address, port)`` of every member, this node among them.
                One that is empty, or has port 0, is not dialled until another is told.
            bind: numeric address and port to listen at; None: the node's own member address.
            settled: group to the highest instance in the store; absent: 0.
            options: see ``phx.config`` and ``options.OPTIONS``; unknown names are refused.
            starts: groups that begin paused, each with the instance K up to which its machine is
                going to hold everything, 0 to 2**62: the frontier of the checkpoint that is being
                restored, or 0. K may lie above everything that this node knows to be chosen. While
                a group is paused ``take`` gives nothing of it, this node does not lead it
                and does not campaign; it votes, accepts, learns, settles and supplies all the same,
                and takes values, which go to whoever leads. It waits for ``resume``. Any other
                group begins with instance 1, and is not paused.
            floors: group to the lowest instance that the store still has, from 1 to its settled
                instance + 1; absent: 1. See ``floored``.
            incarnation: highest one of this node that any checkpoint here knows, below 2**32 - 1;
                this life's is above it, whatever the journal says.
            facts: what is known besides the journal; None: nothing, and then there is no rejoin. A
                journal that does not know the life ``lost`` is damaged.
            suspect: groups whose votes are lost: the journal is a new one in the place of one that
                cannot be believed. They do not vote until they have rejoined (rejoin.pxd).
            peers: other nodes to be connected with, as `members`; no group counts them.
            named: nodes whose address is that of a name: see ``PeerTable.lookups``.
            trace_path: a new file for everything that this driver is told, writes, syncs and sends
                (docs/design/trace.md); None: no trace.
            trace_bytes_max: of that file; there it ends, and the driver goes on.
            generations: of groups that were created (``GroupTable.add``); of any other it is 0.
            gone: the last generation of ids under which groups were hosted that are gone: records
                of these are passed over. Of one that is neither hosted nor gone they are damage.

        Raises:
            DriverError: an argument that cannot be (ERROR_OPTION); ``starts`` names a group that is
                not hosted (ERROR_UNKNOWN_GROUP); a start whose next instance lies below the floor
                of its group, so that the log cannot follow it, or a floor that leaves a gap behind
                what is settled (ERROR_START). Nothing was opened.
        """
    @staticmethod
    def now_us() -> int:
        """The clock of deadlines: microseconds that count suspension."""
    def start(self) -> None:
        """Open and replay the journal, bind, start the threads."""
    def submit(self, group: int, machine: int, values: Sequence[bytes], deadline_us: int) -> int:
        """Hand values over to be proposed; returns the first of their consecutive sequences.

        Raises:
            DriverError: nothing was taken: CLOSED, OVERLOADED, UNKNOWN_GROUP, TOO_LARGE.
        """
    def fileno(self) -> int:
        """Descriptor that is readable when take(), events() or messages() has something."""
    def poke(self) -> None:
        """Make ``fileno`` readable, as if there were something to take. Any thread."""
    def clear_wake(self) -> None:
        """Make ``fileno`` unreadable; call before taking."""
    def take(self, bytes_max: int) -> list[Batch]:
        """Chosen entries to apply, in order within each group, at most about ``bytes_max``.

        What is left over makes ``fileno`` readable again. Whoever comes again has applied what it
        took before: how long ago that was handed over is how late this node applies.
        """
    def turning_away(self, on: bool) -> None:
        """Whether callers here are turned away: the other nodes hear how late it applies then."""
    def behind_us(self) -> int:
        """By how much the latest of the other nodes that turn callers away applies later than this
        one does; 0: none, or nobody is heard. Whoever is later than a second does not count."""
    def events(self) -> list[tuple[int, int, int, int, int, int]]:
        """``(kind, verdict, group, first_seq, count, leader)`` of all since the last call.

        EVENT_BELOW: nobody connected has the log that the group needs next; ``leader`` keeps it
        from ``first_seq`` on, and no one from lower. Once per group until it is taken, and again
        while it lasts. ``leader`` 0: the group's own machine waits for what this node has trimmed.

        EVENT_CEILING: tell ``ceiling``, once it is durable, that it is at least ``first_seq``.
        """
    def handed(self) -> list[tuple[int, int, bytes]]:
        """``(descriptor, node, bytes)`` of connections of nodes that came for a checkpoint, for
        values (`phx.transfer`), or to ask who is there (`phx.node.joining`), since the last call;
        ``fileno`` is readable when there are any.

        Guarantee: each said a FETCH that was checked like a HELLO: version, peer, window, store id
        and incarnation as this node knows them; or a JOIN, of which version and window were
        checked, and store id and incarnation if that node was met by this driver. ``bytes`` is that
        frame and what came behind it.
        The socket does not block, and is the caller's to close. At most 16 wait: more are refused.
        """
    def messages(self) -> list[tuple[int, str]]:
        """Log lines of the native threads since the last call: ``(logging level, text)``."""
    def applied(self, group: int, instance: int) -> None: ...
    def pause(self, group: int) -> None:
        """Deliver nothing more of a group, whose machine is going to be made anew, until `resume`.

        Guarantee: as of ``starts``, this node does not lead the group meanwhile; it votes, accepts,
        learns, settles and supplies. What was handed over before is there to be taken still: after
        the next `group_status` there comes no more. `resume` gives everything from its start on
        once more, and a group that was stopped goes on with it. Nothing changes if it is paused.

        Raises:
            DriverError: UNKNOWN_GROUP, CLOSED, OVERLOADED.
        """
    def resume(self, group: int, start: int | None = None) -> None:
        """The machine of a paused group is there: deliver what follows, and lead if it comes to it.

        Guarantee: what ``take`` gives of the group begins with instance ``start`` + 1. Once per
        group; where it raises, the group is paused as before, and it may be called again.

        Args:
            start: the machine, and the group's table in ``sessions``, hold exactly the effects of
                instances 1 to ``start``; None: as said in ``starts``. It may be lower or higher
                than that: another checkpoint was restored in its place.

        Raises:
            DriverError: the group is not paused, or the log cannot follow ``start``, or the
                session table stands elsewhere (ERROR_START); UNKNOWN_GROUP, CLOSED, OVERLOADED.
        """
    def floored(self, group: int, floor: int, settled: int) -> None:
        """The store keeps the group from instance ``floor`` on, its row says so and is durable.

        Guarantee: from the next turn on peers that ask for less are told the floor, and nothing is
        settled up to ``settled`` any more. A floor never falls. Every message tells the floor that
        the engine was told last, so it is told after the row was committed and never before.

        Args:
            floor: lowest instance that the store keeps, from 1 to ``settled`` + 1. A checkpoint
                that is durable, and of which the group's machine was made or can be made, holds
                everything below: a machine that is behind gets nothing of it from ``take``.
            settled: the row's settled instance, below 2**62.

        Raises:
            DriverError: numbers that leave a gap (ERROR_START); UNKNOWN_GROUP, CLOSED, OVERLOADED.
        """
    def install(self, group: int, frontier: int, ballot: int) -> None:
        """A checkpoint of another node took the place of what this one had: go on behind it.

        Guarantee: what ``take`` gives of the group from then on follows ``frontier``, but for what
        was handed over before and lies below, which ``sessions`` passes over. The node's promise
        never falls, and what it accepted above stays accepted. If delivery has passed the frontier
        by itself, only the floor is raised.

        Args:
            frontier: the machine, and the group's table in ``sessions``, hold exactly the effects
                of instances 1 to ``frontier``, at least 1 and below 2**62; a paused group's are
                going to (see ``resume``). The store's row says, durably, that it keeps what
                follows: ``floored`` is not needed besides.
            ballot: the highest in which a value up to there was first packed; 0: not known.

        Raises:
            DriverError: no instance or no ballot (ERROR_START); UNKNOWN_GROUP, CLOSED, OVERLOADED.
        """
    def done(self, group: int, first: int, count: int) -> None:
        """Own values from sequence ``first`` on are applied, as an installed table says.

        They are not proposed or forwarded again, and their deadline says nothing any more. See
        ``Waiters.settle_applied``.
        """
    def ceiling(self, counter: int) -> None:
        """No promise will have a counter above this one: that is durable, outside the journal.

        It is only raised. Whatever is above it waits until it is.
        """
    def stop_group(self, group: int) -> None: ...
    # --- questions: each waits for the poll thread; CLOSED, OVERLOADED
    def status(self) -> dict[str, object]: ...
    def group_status(self, group: int) -> dict[str, int | bool]: ...
    def group_statuses(self) -> list[dict[str, int | bool]]: ...
    def busy_groups(self) -> list[tuple[int, int, int, int]]:
        """``(group, leader, chosen_through, accepted_last)`` of each group that is paused, has no
        leader (0), or has accepted something that is not known to be applied."""
    def read(self, group: int, instance: int) -> bytes | int:
        """Body of a chosen instance; 0: not chosen yet, 1: in the store, 2: no such group."""
    def store_work(
        self, timeout_us: int
    ) -> (
        tuple[Literal["settle"], SettlePlan, int]
        | tuple[Literal["fetch"], int, int, int, int]
        | tuple[Literal["load"], int, int, int]
        | tuple[Literal["closing"]]
        | None
    ):
        """Wait, GIL released, for work of the store thread.

        ``("settle", plan, upto_lsn)``: answer with ``settled``.
        ``("fetch", group, peer, first, last)``: answer with ``supply``, also with b"".
        ``("load", group, first, last)``: answer with ``loaded``, also with b"".
        ``("closing",)``: the driver stops; there is nothing more. None: timeout, or called.
        """
    def store_call(self) -> None:
        """The next ``store_work`` that finds nothing does not wait. Also of a stopped driver."""
    def settled(self, plan: SettlePlan, upto_lsn: int) -> None:
        """The plan's entries are committed and synced in the store."""
    def settle_failed(self, plan: SettlePlan) -> None:
        """The store could not take the plan; its entries will be in a later one."""
    def supply(self, group: int, peer: int, first: int, entries: bytes) -> None: ...
    def loaded(self, group: int, first: int, entries: bytes) -> None: ...
    def settle_now(self) -> None:
        """Settle all that is chosen; done when ``status()["settle"]["pending"]`` is False."""
    def priority(self, priority: int) -> None:
        """How much this node wants to lead from now on: 0 .. 255, 100 at the start."""
    def resign(self) -> None: ...
    def transfer(self, group: int, to: int) -> tuple[int, int]:
        """Give the leadership of a group to a member, or with 0 to whoever should have it next.

        Returns:
            TRANSFER_UNDER_WAY (or that node leads already), TRANSFER_NOT_LEADING or
            TRANSFER_NOT_READY (nothing was done); and the ballot that this node led with.
        """
    def durability(self, group: int, within_us: int) -> int:
        """What is accepted in the group is told once it is written, and durable within so many
        microseconds (NO_SYNC: with whatever else is synced); 0: it is told when it is durable,
        which is how a group begins (docs/design/durability.md).

        Returns:
            A position: when ``durable_lsn()`` is as high, all that was told before is durable.
        """
    def durable_lsn(self) -> int:
        """The journal is durable up to here."""
    def stop(self, timeout_us: int) -> None:
        """Stop and join the native threads and free what they used. Idempotent.

        Raises:
            DriverError: ERROR_TIMED_OUT when a thread is stuck in a system call; call again.
        """
    def after_fork_in_child(self) -> None:
        """Close the descriptors inherited by a forked child, without joining or unlocking."""
