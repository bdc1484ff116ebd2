# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The engine for Python; see engine_door.pxd.

Nothing is done here but turning arguments and effects into Python objects, so a test or a simulator
that drives this class drives the production engine.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memset

from phx._core.batch cimport ItemHeader
from phx._core.codec cimport RECORD_HEADER_BYTES, RecordHeader, record_stride
from phx._core.engine cimport (
    engine_add_group, engine_add_peer, engine_advance, engine_applied, engine_ceiling,
    engine_change_known, engine_change_members, engine_connected, engine_counters,
    engine_disconnected, engine_done, engine_drop_group, engine_drop_peer, engine_durability,
    engine_durable, engine_entry, engine_floor, engine_free, engine_gone, engine_group_status,
    engine_install, engine_late, engine_location, engine_membership, engine_new, engine_poison,
    engine_pressure, engine_priority, engine_read, engine_receive, engine_replay, engine_resign,
    engine_restoring, engine_retire, engine_settle_plan, engine_settled,
    engine_start, engine_stop_group, engine_submit, engine_supply, engine_suspect, engine_sync,
    engine_transfer, engine_turn, engine_written,
)
from phx._core.membership cimport config_set
from phx._core.native cimport *
from phx._core.state cimport (
    Config, Effects, EngineCounters, EngineOptions, Event, GroupMembers, GroupStatus,
    MEMBERS_ACTIVE, MEMBERS_ENDED, MEMBERS_LEFT, MEMBERS_MAX, SettleItem, find_group, slot_of,
)

DEFAULTS = {
    "window": 1024, "window_bytes": 16 << 20, "batch_bytes_max": 256 << 10, "heartbeat_us": 100_000,
    "lease_us": 800_000, "election_us": 100_000, "resend_us": 300_000,
    "pending_bytes_max": 64 << 20,
    "cache_bytes_max": 64 << 20, "frame_bytes_max": 1 << 20, "value_bytes_max": 1 << 20,
    "balance": 1,
}


cdef bytes take_block(Block* block):
    cdef bytes made = PyBytes_FromStringAndSize(<char*>block.data, block.size)
    block_unref(block)
    return made


cdef class Engine:
    """One node's engine. Not thread-safe."""

    def __cinit__(self, node, members, groups, *, cluster=1, seed=1, settled=None, **options):
        cdef EngineOptions o
        cdef list ids = sorted(members)
        unknown = set(options) - set(DEFAULTS)
        if unknown:
            raise TypeError(f"unknown options: {sorted(unknown)}")
        if node not in ids or not 1 <= len(ids) <= MEMBERS_MAX:
            raise ValueError("the node must be one of 1 to 15 members")
        values = {**DEFAULTS, **options}
        memset(&o, 0, sizeof(o))
        o.node = node
        o.cluster = cluster
        o.n_members = len(ids)
        for i, member in enumerate(ids):
            o.members[i] = member
        o.seed = seed
        o.window = values["window"]
        o.window_bytes = values["window_bytes"]
        o.batch_bytes_max = values["batch_bytes_max"]
        o.heartbeat_us = values["heartbeat_us"]
        o.lease_us = values["lease_us"]
        o.election_us = values["election_us"]
        o.resend_us = values["resend_us"]
        o.pending_bytes_max = values["pending_bytes_max"]
        o.cache_bytes_max = values["cache_bytes_max"]
        o.frame_bytes_max = values["frame_bytes_max"]
        o.value_bytes_max = values["value_bytes_max"]
        o.balance = values["balance"]
        self.e = engine_new(&o)
        for group in groups:
            if engine_add_group(self.e, group, 0, (settled or {}).get(group, 0)) < 0:
                raise ValueError(f"group {group}: given twice, or out of range")

    def __dealloc__(self):
        engine_free(self.e)

    def add_group(self, group, generation=0, settled=0):
        """0, or -1: it cannot be. Before the start, or while it runs."""
        return engine_add_group(self.e, group, generation, settled)

    def gone(self, group, generation):
        engine_gone(self.e, group, generation)

    def drop_group(self, group):
        engine_drop_group(self.e, group)

    def index(self, group):
        """Its place among the groups."""
        return find_group(self.e, group).index

    def members(self, group, voters, learners=()):
        """The group has these members, nodes of this engine; before the start."""
        config_set(self.e, find_group(self.e, group), self.slots(voters), 0, self.slots(learners))

    def slots(self, nodes):
        bits = 0
        for node in nodes:
            bits |= 1 << slot_of(self.e, node)
        return bits

    def configs(self):
        """What groups share: (slots of voters, of learners, quorum, groups that have it, led)."""
        cdef size_t i
        cdef Config* c
        found = []
        for i in range(self.e.configs.size()):
            c = self.e.configs[i]
            found.append((c.voters, c.learners, c.quorum, c.groups, c.led))
        return sorted(found)

    def replay(self, bytes records, lsn):
        """Records as journalled (crc not checked here: that is the journal's duty)."""
        cdef const u8* data = records
        cdef u64 at = 0, count = len(records), position = lsn
        cdef RecordHeader* header
        while at < count:
            header = <RecordHeader*>(data + at)
            if engine_replay(self.e, header, data + at + RECORD_HEADER_BYTES, position + at) < 0:
                raise ValueError("damaged record")
            at += record_stride(header.body_bytes)

    def start(self, next_lsn, now_us, wall_us=0):
        self.incarnation = engine_start(self.e, next_lsn, now_us, wall_us)
        return self.incarnation

    def receive(self, peer, bytes payload):
        engine_receive(self.e, peer, payload, len(payload))

    def submit(self, group, first_seq, values, deadline_us, machine=0):
        """0, or a Verdict. `values`: bytes objects, sequences first_seq, first_seq + 1, …"""
        cdef Block* block = block_new(256)
        cdef ItemHeader item
        cdef int verdict
        for value in values:
            item.bytes = len(value)
            item.machine = machine
            item.flags = 0
            block = block_append(block, &item, sizeof(item))
            block = block_append(block, <const char*>(<bytes>value), item.bytes)
        verdict = engine_submit(self.e, group, first_seq, len(values), block, 0, block.size,
                                deadline_us)
        block_unref(block)
        return verdict

    def submit_items(self, group, first_seq, count, bytes items, deadline_us):
        """The same with the items as they stand in the block (batch.pxd)."""
        cdef Block* block = block_copy(<const char*>items, len(items))
        cdef int verdict = engine_submit(self.e, group, first_seq, count, block, 0, block.size,
                                         deadline_us)
        block_unref(block)
        return verdict

    def read(self, group, ticket, deadline_us, flags=0):
        return engine_read(self.e, group, ticket, flags, deadline_us)

    def durable(self, lsn):
        engine_durable(self.e, lsn)

    def written(self, lsn):
        engine_written(self.e, lsn)

    def durability(self, group, u64 within_us):
        return engine_durability(self.e, group, within_us)

    def sync(self):
        engine_sync(self.e)

    def advance(self, now_us, wall_us=0):
        engine_advance(self.e, now_us, wall_us)

    def connected(self, peer, incarnation, bytes store_id):
        if len(store_id) != 16:
            raise ValueError("a store id has 16 bytes")
        return engine_connected(self.e, peer, incarnation, store_id)

    def disconnected(self, peer):
        engine_disconnected(self.e, peer)

    def add_peer(self, node, bytes store_id=None):
        cdef const u8* known = NULL
        if store_id is not None:
            if len(store_id) != 16:
                raise ValueError("a store id has 16 bytes")
            known = <const u8*><const char*>store_id
        return engine_add_peer(self.e, node, known)

    def drop_peer(self, node):
        return engine_drop_peer(self.e, node)

    def peers(self):
        """Nodes by slot; 0: the slot is free."""
        return [self.e.slot_node[i] for i in range(self.e.n_slots)]

    def supply(self, group, peer, first, bytes entries):
        engine_supply(self.e, group, peer, first, entries, len(entries))

    def applied(self, group, instance):
        engine_applied(self.e, group, instance)

    def settled(self, group, through):
        engine_settled(self.e, group, through)

    def floor(self, group, floor):
        engine_floor(self.e, group, floor)

    def install(self, group, through, ballot):
        return engine_install(self.e, group, through, ballot)

    def change_members(self, group, bytes members):
        """A ChangeVerdict. `members`: a value of phx._core.members, with the version after that of
        the members there are."""
        return engine_change_members(self.e, group, members, len(members))

    def change_known(self, group, version, bytes members, instance, floor, bint active):
        return engine_change_known(self.e, group, version, members, len(members), instance, floor,
                                   active)

    def membership(self, group):
        """As far as anything has changed; `value`: the membership value, or None."""
        cdef GroupMembers found
        if not engine_membership(self.e, group, &found):
            raise KeyError(group)
        return {
            "version": found.version, "instance": found.instance, "floor": found.floor,
            "active": bool(found.flags & MEMBERS_ACTIVE), "left": bool(found.flags & MEMBERS_LEFT),
            "ended": bool(found.flags & MEMBERS_ENDED),
            "value": None if found.value == NULL else PyBytes_FromStringAndSize(
                <char*>found.value.data, found.value.size),
        }

    def done(self, group, first_seq, count):
        engine_done(self.e, group, first_seq, count)

    def retire(self, lsn):
        return engine_retire(self.e, lsn)

    def stop_group(self, group):
        engine_stop_group(self.e, group)

    def restoring(self, group, bint on):
        engine_restoring(self.e, group, on)

    def ceiling(self, u64 counter):
        engine_ceiling(self.e, counter)

    def suspect(self, group):
        return engine_suspect(self.e, group)

    def poison(self):
        engine_poison(self.e)

    def pressure(self, level):
        engine_pressure(self.e, level)

    def transfer(self, group, to):
        return engine_transfer(self.e, group, to)

    def priority(self, u32 priority):
        engine_priority(self.e, priority)

    def late(self, u32 late_us):
        engine_late(self.e, late_us)

    def resign(self):
        engine_resign(self.e)

    def turn(self):
        """The effects of everything since the last turn, as a dict."""
        cdef Effects* out = engine_turn(self.e)
        cdef size_t i
        result = {
            "lsn_first": out.lsn_first, "lsn_end": out.lsn_end, "sync": bool(out.sync),
            "write": bool(out.write),
            "wake_at_us": out.wake_at_us, "floor_lsn": out.floor_lsn,
            "floor_after": out.floor_after,
        }
        result["records"] = take_block(out.records) if out.records != NULL else b""
        out.records = NULL
        result["outgoing"] = [
            (out.outgoing[i].peer, take_block(out.outgoing[i].frame), out.outgoing[i].after)
            for i in range(out.outgoing.size())
        ]
        result["chosen"] = [(out.chosen[i].group, out.chosen[i].first, out.chosen[i].last)
                            for i in range(out.chosen.size())]
        result["fetches"] = [(out.fetches[i].group, out.fetches[i].peer, out.fetches[i].first,
                              out.fetches[i].last)
                             for i in range(out.fetches.size())]
        result["events"] = [
            (out.events[i].kind, out.events[i].verdict, out.events[i].group,
             out.events[i].first_seq,
             out.events[i].count, out.events[i].leader)
            for i in range(out.events.size())
        ]
        result["points"] = [(out.points[i].group, out.points[i].verdict, out.points[i].ticket,
                             out.points[i].instance)
                            for i in range(out.points.size())]
        return result

    def entry(self, group, instance):
        """Body of a chosen instance that is in memory, else None."""
        cdef Block* block = engine_entry(self.e, group, instance)
        if block == NULL:
            return None
        return PyBytes_FromStringAndSize(<char*>block.data, block.size)

    def location(self, group, instance):
        return engine_location(self.e, group, instance)

    def status(self, group):
        cdef GroupStatus status
        if not engine_group_status(self.e, group, &status):
            raise KeyError(group)
        made = status
        return made

    def counters(self):
        cdef EngineCounters counters = engine_counters(self.e)[0]
        made = counters
        return made

    def settle_plan(self, lsn):
        cdef vector[SettleItem] items
        cdef size_t i
        engine_settle_plan(self.e, lsn, &items)
        return [(items[i].group, items[i].instance, items[i].lsn) for i in range(items.size())]
