"""What must hold in every run, whatever happens: the invariants that the simulator checks.

The checker sees everything: every record of every node, what of it is synced, every message when
it leaves. It knows that a value is decided before any node does: as soon as a quorum has synced
an acceptance of it in one ballot.

U1  one value per (group, instance)          U4  a promise never falls, over restarts too
U2  decided means submitted, or a no-op      U5  nothing leaves before what it exposes is durable
U3  decided stays decided                    U6  one value per (ballot, instance)
U7  applied once, in order                   U11 leases of one group never overlap
"""

from collections import defaultdict

from phx.testing.wire_text import (
    ACCEPT,
    CHOSEN,
    ENTRY_CHOSEN,
    FLAG_NEED_WHOLE,
    FLAG_WHOLE,
    PROMISE,
    REJECTED,
    VERDICTS,
    Message,
    Record,
    ballot_text,
    runs_of,
)  # fmt: skip

IN_FLIGHT_MAX = 65536
Key = tuple[int, int]


class Violation(AssertionError):
    """An invariant is broken; the harness adds the seed and the last events."""


class Table:
    """Which values of which session a group has applied (protocol.md, "Exactly once")."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, int, set[int]]] = {}

    def apply(self, node: int, incarnation: int, low_water: int, seq: int) -> bool:
        newest, base, done = self.rows.get(node, (0, 1, set()))
        if incarnation < newest:
            return False
        if incarnation > newest:
            newest, base, done = incarnation, 1, set()
        if low_water > base:
            base = low_water
            done = {s for s in done if s >= base}
        fresh = base <= seq < base + IN_FLIGHT_MAX and seq not in done
        if fresh:
            done.add(seq)
        self.rows[node] = newest, base, done
        return fresh


class Holder:
    """What one leader believes of its leases: counted per group, from the acknowledgements."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, int], tuple[int, int]] = {}  # (peer, seq): when, how long
        self.since: dict[int, tuple[int, int]] = {}  # group: (ballot, version of the set)
        self.until: dict[tuple[int, int, int], int] = {}  # (group, ballot, peer)


class Checker:
    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes
        self.quorum = len(nodes) // 2 + 1
        self.bodies: dict[tuple[int, int, int], bytes] = {}
        self.votes: dict[tuple[int, int, int], set[int]] = defaultdict(set)
        self.accepted: set[tuple[int, int, int, int]] = set()
        self.decided: dict[Key, bytes] = {}
        self.log_end: dict[int, int] = defaultdict(int)
        self.tables: dict[int, Table] = defaultdict(Table)
        self.applied: dict[tuple[int, int, int, int], int] = {}
        self.submitted: dict[tuple[int, int, int, int], bytes] = {}
        self.verdicts: dict[tuple[int, int, int, int], int] = {}
        self.chosen_values: set[tuple[int, int, int, int]] = set()
        self.acked: dict[tuple[int, int, int, int], int] = {}
        self.exposed: dict[Key, int] = defaultdict(int)
        self.promised: dict[Key, int] = defaultdict(int)  # in this life
        self.promise: dict[Key, int] = defaultdict(int)  # synced
        self.synced: set[tuple[int, int, int, int]] = set()  # acceptances
        self.synced_chosen: set[tuple[int, int, int]] = set()
        self.holders: dict[int, Holder] = defaultdict(Holder)
        self.leases: dict[int, tuple[int, int]] = {}  # group: (node, until) of the last holder

    # --- records

    def record_emitted(self, node: int, r: Record) -> None:
        if r.kind == ACCEPT:
            key = (r.group, r.index, r.ballot)
            known = self.bodies.setdefault(key, r.body)
            if known != r.body:
                raise Violation(
                    f"U6: two values for g{r.group} {r.index} b({ballot_text(r.ballot)})"
                )
            promised = self.promised[node, r.group]
            if (node, *key) not in self.accepted and r.ballot < promised:
                raise Violation(f"U4: node {node}: {r.line()} after {ballot_text(promised)}")
            self.accepted.add((node, *key))
        elif r.kind == PROMISE:
            if r.ballot < self.promised[node, r.group]:
                raise Violation(f"U4: node {node} takes back a promise: {r.line()}")
            self.promised[node, r.group] = r.ballot
        elif r.kind == CHOSEN and self.decided.get((r.group, r.index)) != r.body:
            raise Violation(f"U1: node {node} learns what is not decided: {r.line()}")

    def record_synced(self, node: int, r: Record) -> None:
        if r.kind in (PROMISE, ACCEPT) and r.ballot > self.promise[node, r.group]:
            self.promise[node, r.group] = r.ballot
        if r.kind == CHOSEN:
            self.synced_chosen.add((node, r.group, r.index))
        if r.kind != ACCEPT:
            return
        key = (r.group, r.index, r.ballot)
        self.synced.add((node, *key))
        votes = self.votes[key]
        votes.add(node)
        if len(votes) == self.quorum:
            self.decide(r)

    def decide(self, r: Record) -> None:
        known = self.decided.setdefault((r.group, r.index), r.body)
        if known != r.body:
            raise Violation(f"U1: another value was decided before: {r.line()}")
        while (r.group, self.log_end[r.group] + 1) in self.decided:
            self.log_end[r.group] += 1
            self.apply(r.group, self.log_end[r.group])

    def apply(self, group: int, instance: int) -> None:
        for run in runs_of(self.decided[group, instance]):
            for i, text in enumerate(run.values):
                seq = run.first_seq + i
                key = (group, run.node, run.incarnation, seq)
                if self.submitted.get(key) != text:
                    raise Violation(f"U2: decided but never submitted: {key} {text!r}")
                verdict = self.verdicts.get(key, 0)
                if verdict in REJECTED:
                    raise Violation(f"{key} was rejected ({VERDICTS[verdict]}), and is now chosen")
                self.chosen_values.add(key)
                if self.tables[group].apply(run.node, run.incarnation, run.low_water, seq):
                    if key in self.applied:
                        raise Violation(f"U7: applied twice: {key}")
                    self.applied[key] = instance

    # --- a node's life

    def announced(
        self, node: int, incarnation: int, group: int, instance: int, body: bytes
    ) -> None:
        known = self.decided.get((group, instance))
        if known is None:
            raise Violation(f"U3: node {node} announces g{group} {instance}, which no quorum holds")
        if known != body:
            raise Violation(f"U1: node {node} announces another value for g{group} {instance}")
        for run in runs_of(body):
            if run.node != node or run.incarnation != incarnation:
                continue
            for seq in range(run.first_seq, run.first_seq + len(run.values)):
                key = (group, node, incarnation, seq)
                if key not in self.applied and key not in self.verdicts:
                    raise Violation(f"U7: {key} is chosen, wanted, and was not applied")
                if key in self.applied and key not in self.verdicts:
                    self.acked.setdefault(key, instance)

    def verdict(self, node: int, incarnation: int, group: int, seq: int, verdict: int) -> None:
        key = (group, node, incarnation, seq)
        if key in self.acked:
            raise Violation(f"{key}: verdict {VERDICTS[verdict]} after it was acknowledged")
        if key in self.verdicts:
            raise Violation(f"{key}: two verdicts")
        if verdict in REJECTED and key in self.chosen_values:
            raise Violation(f"{key} is chosen, and rejected ({VERDICTS[verdict]})")
        self.verdicts[key] = verdict

    def restarted(self, node: int, group: int, promised: int) -> None:
        if promised < self.exposed[node, group]:
            raise Violation(
                f"U4: node {node} g{group} promised {ballot_text(promised)} after restart"
            )
        self.promised[node, group] = promised

    # --- messages, when they leave

    def leaves(self, node: int, m: Message, chosen_through: int) -> None:
        key = (node, m.group)
        if m.name in ("Prepare", "Promise", "Accepted", "Accept"):
            if self.promise[key] < m.ballot:
                raise Violation(f"U5: {m.line()} leaves, and its promise is not durable")
            self.exposed[key] = max(self.exposed[key], m.ballot)
        if m.name == "Refuse" and m.promised > self.promise[key]:
            raise Violation(f"U5: {m.line()} tells of a promise that is not durable")
        if m.name == "Accepted":
            for instance in range(m.first, m.through + 1):
                known = instance <= chosen_through and (m.group, instance) in self.decided
                known = known or (node, m.group, instance) in self.synced_chosen
                if not known and (node, m.group, instance, m.ballot) not in self.synced:
                    raise Violation(f"U5: {m.line()}: {instance} is not durable in this ballot")
        if m.name == "Promise":
            for entry in m.entries():
                if entry.flags & ENTRY_CHOSEN:
                    if self.decided.get((m.group, entry.instance)) != entry.body:
                        raise Violation(f"U1: {m.line()}: {entry.instance} is not decided so")
                elif (node, m.group, entry.instance, entry.ballot) not in self.synced:
                    raise Violation(f"U5: {m.line()}: {entry.instance} is not durable")

    # --- leases (approximated: per group, from what the acknowledgements say)

    def beat(self, node: int, m: Message) -> None:
        holder = self.holders[node]
        holder.sent[m.dest, m.seq] = m.sent_us, m.lease_us
        if m.flags & FLAG_WHOLE:
            named = dict(m.claims())
            holder.since = {g: s for g, s in holder.since.items() if g in named}
        for group, number in m.claims():
            if number == 0:
                holder.since.pop(group, None)
            elif holder.since.get(group, (0, 0))[0] != number:
                holder.since[group] = number, m.version

    def beat_acked(self, node: int, m: Message, now_us: int, leading: dict[int, int]) -> None:
        """`leading`: group -> ballot that this node leads in at this moment."""
        holder = self.holders[node]
        if m.flags & FLAG_NEED_WHOLE or (m.source, m.seq) not in holder.sent:
            return
        sent, lease = holder.sent[m.source, m.seq]
        refused = m.refused()
        for group, (number, version) in holder.since.items():
            if m.version < version or group in refused or leading.get(group) != number:
                continue
            key = (group, number, m.source)
            holder.until[key] = max(holder.until.get(key, 0), sent + min(lease, m.lease_us))
            times = sorted(
                (holder.until.get((group, number, peer), 0) for peer in self.nodes if peer != node),
                reverse=True,
            )
            until = times[self.quorum - 2] if self.quorum > 1 else 1 << 62
            if until <= now_us:
                continue
            held_by, held_until = self.leases.get(group, (node, 0))
            if held_by != node and held_until > now_us:
                raise Violation(f"U11: nodes {held_by} and {node} hold the lease of g{group}")
            self.leases[group] = node, until

    def gave_up(self, node: int, group: int) -> None:
        """A node that does not lead any more holds nothing."""
        if self.leases.get(group, (0, 0))[0] == node:
            del self.leases[group]

    def forget(self, node: int, incarnation: int) -> None:
        for table in (self.submitted, self.verdicts):
            for key in [k for k in table if k[1:3] == (node, incarnation)]:
                del table[key]

    def died(self, node: int) -> None:
        self.holders.pop(node, None)
        for group in [g for g, (n, _) in self.leases.items() if n == node]:
            del self.leases[group]
