# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""See watch_door.pxd and watch_door.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from phx._core.codec cimport (
    FRAME_ENGINE, RECORD_HEADER_BYTES, RecordHeader, frame_begin, frame_seal, record_stride,
)
from phx._core.engine cimport (
    engine_add_group, engine_change_known, engine_drop_group, engine_floor, engine_free,
    engine_install, engine_new, engine_replay, engine_start, engine_suspect,
)
from phx._core.native cimport *
from phx._core.published cimport (
    POINT_OK, Published, publish, published_new, published_point, published_unref,
)
from phx._core.state cimport (
    Engine, EngineOptions, Lead, ROLE_LEADING, Replica, find_group,
)
from phx._core.window cimport Slot, window_slot
from phx.sim.configurations cimport CREATED_BASE, CREATED_FLOOR
from phx.sim.invariants cimport *
from phx.sim.watch_callers cimport *
from phx.sim.watch_kept cimport *
from phx.sim.watch_lives cimport *
from phx.sim.watch_lost cimport watch_ceiling, watch_lost
from phx.sim.watch_members cimport (
    watch_leads, watch_members, watch_members_row, watch_wiped,
)
from phx.sim.watch_odd cimport (
    watch_answers, watch_found, watch_gives, watch_made_of, watch_marked, watch_odd,
    watch_odd_life,
)
from phx.sim.watch_relaxed cimport (
    watch_power, watch_relaxed, watch_row_relaxed, watch_written,
)
from phx.sim.watch_reads cimport (
    known_through, watch_announced, watch_asked_point, watch_published, watch_read_point,
)

from phx._core import members as rosters


cdef struct Meanwhile:
    Published* published
    Engine* engine
    u32 group
    u64 through


# A clock; while it is looked at, the poll thread ends a turn.
cdef u64 publish_meanwhile(void* context) noexcept nogil:
    cdef Meanwhile* m = <Meanwhile*>context
    cdef vector[u32] some
    some.push_back(m.group)
    find_group(m.engine, m.group).chosen_through = m.through
    publish(m.published, m.engine, &some)
    return 1


cdef class WatchDoor:
    """See watch_door.pyi."""

    def __cinit__(self, u32 nodes, u32 groups, u32 created=0):
        cdef u32 i
        self.n_nodes = nodes
        self.n_groups = groups
        self.watch = watch_new(nodes, groups + created)
        self.watch.configured = groups
        for i in range(nodes):
            self.clocks[i].rate_ppm = 1000000
            self.watch.node[i].clock = &self.clocks[i]

    def __dealloc__(self):
        cdef u32 node
        for node in range(1, self.n_nodes + 1):
            self.drop(node)
        published_unref(self.published)
        watch_free(self.watch)

    cdef void options(self, u32 node, EngineOptions* out) noexcept:
        cdef u32 i
        memset(out, 0, sizeof(EngineOptions))
        out.node = node
        out.cluster = 1
        out.n_members = self.n_nodes
        for i in range(self.n_nodes):
            out.members[i] = i + 1
        out.window = 16
        out.window_bytes = 1 << 20
        out.batch_bytes_max = 4096
        out.heartbeat_us = 100000
        out.lease_us = 800000
        out.election_us = 100000
        out.resend_us = 300000
        out.pending_bytes_max = 1 << 20
        out.cache_bytes_max = 1 << 16
        out.frame_bytes_max = 1 << 16
        out.value_bytes_max = 1024

    cdef void drop(self, u32 node) noexcept:
        engine_free(self.engines[node - 1])
        self.engines[node - 1] = NULL

    cdef Engine* engine_of(self, u32 node) except NULL:
        if self.engines[node - 1] == NULL:
            raise RuntimeError(f"node {node} is down")
        return self.engines[node - 1]

    def failure(self):
        if not self.watch.failed:
            return None
        return (<bytes>self.watch.kind).decode(), (<bytes>self.watch.text).decode()

    def time(self, u64 now_us):
        self.watch.now_us = now_us

    # --- callers

    def propose(self, u32 node, u32 group, u64 sequence, bytes text):
        cdef u64 op = watch_submitting(self.watch)
        value = PyBytes_FromStringAndSize(<char*>&op, 8) + text
        watch_submitted(self.watch, node, group, sequence, <const u8*>PyBytes_AS_STRING(value),
                        PyBytes_GET_SIZE(value))
        return value

    def acked(self, u32 node, u32 group, bytes value):
        watch_acked(self.watch, node, group, int.from_bytes(value[:8], "little"))

    def dropped(self, u32 node, u32 group, bytes value):
        watch_dropped(self.watch, node, group, int.from_bytes(value[:8], "little"))

    def verdict(self, bytes value, bint rejected):
        watch_verdict(self.watch, int.from_bytes(value[:8], "little"), rejected)

    # --- lives

    def start(self, u32 node, replayed=(), settled=None, floors=None, suspect=False, created=None):
        cdef EngineOptions options
        cdef vector[u64] through
        cdef Engine* e
        cdef const u8* data
        cdef u64 at, top = 4096
        cdef RecordHeader header
        cdef u32 group
        cdef u64 floor
        self.options(node, &options)
        self.drop(node)
        e = self.engines[node - 1] = engine_new(&options)
        for group in range(self.n_groups):
            through.push_back((settled or {}).get(group, 0))
            engine_add_group(e, group, 0, through.back())
            floor = self.watch.node[node - 1].seats[group].kept if floors is None else floors[group]
            if settled is not None:
                watch_row(self.watch, node, group, floor, through.back())
            engine_floor(e, group, floor)
        for group in range(self.n_groups, self.watch.groups):
            through.push_back(CREATED_BASE if created and group in created else 0)
            if through.back():
                self.add_created(e, group)
                self.know(e, group, created[group])
        for lsn, records in replayed:
            at = 0
            data = <const u8*>PyBytes_AS_STRING(records)
            while at < <u64>PyBytes_GET_SIZE(records):
                memcpy(&header, data + at, sizeof(header))
                watch_replayed(self.watch, node, &header, data + at + RECORD_HEADER_BYTES, lsn + at)
                if engine_replay(e, &header, data + at + RECORD_HEADER_BYTES, lsn + at) != 0:
                    raise ValueError("the engine refuses the record")
                at += record_stride(header.body_bytes)
            top = max(top, <u64>lsn + at)
        for group in range(self.n_groups if suspect else 0):
            engine_suspect(e, group)
        watch_started(self.watch, node, e, engine_start(e, top, 1, 1), through.data())
        watch_odd_life(self.watch, node)

    def die(self, u32 node):
        watch_died(self.watch, node)
        self.drop(node)

    def lose(self, u32 node):
        watch_lost(self.watch, node)

    def relax(self, u32 node, u32 group, bint on, u64 turn=0):
        watch_relaxed(self.watch, node, group, on, turn)

    def relaxed_row(self, u32 node, u32 group, bint on):
        watch_row_relaxed(self.watch, node, group, on)

    def written(self, u32 node, u64 lsn):
        watch_written(self.watch, node, lsn)

    def power(self, u32 node):
        watch_power(self.watch, node)

    def ceiling(self, u32 node, u64 counter):
        watch_ceiling(self.watch, node, counter)

    # --- what it does

    def emit(self, u32 node, u64 lsn, bytes records):
        watch_emitted(self.watch, node, <const u8*>PyBytes_AS_STRING(records),
                      PyBytes_GET_SIZE(records), lsn)
        return lsn + PyBytes_GET_SIZE(records)

    def durable(self, u32 node, u64 lsn):
        watch_durable(self.watch, node, lsn)

    def send(self, u32 node, bytes messages, u64 made=0):
        cdef Block* frame = frame_begin(block_new(256))
        frame = block_append(frame, PyBytes_AS_STRING(messages), PyBytes_GET_SIZE(messages))
        frame_seal(frame, 0, FRAME_ENGINE, node, 0, 1)
        watch_sent(self.watch, node, frame.data, frame.size, made)
        block_unref(frame)

    def step(self, u32 node, u32 group):
        self.engine_of(node)
        watch_step(self.watch, node, group)

    def full(self):
        watch_full(self.watch)

    def chosen(self, u32 node, u32 group, u64 instance, bytes body):
        watch_chosen(self.watch, node, group, instance, <const u8*>PyBytes_AS_STRING(body),
                     PyBytes_GET_SIZE(body))

    def applied(self, u32 node, u32 group, u64 instance, u32 index, bytes value, u64 epoch=0,
                u64 time_us=0):
        watch_applied(self.watch, node, group, instance, index,
                      int.from_bytes(value[:8], "little"), epoch, time_us)

    def chain(self, u32 node, u32 group, u64 instance, u32 chain):
        watch_chain(self.watch, node, group, instance, chain)

    def known(self, u32 group):
        return known_through(self.watch, group)

    def point(self, u32 node, u32 group, u64 known, u64 point, bint quorum=False):
        watch_asked_point(self.watch, node, group, known, point, quorum)

    def checkpoint(self, u32 node, u32 group, u64 through, bytes table, u64 state):
        watch_checkpoint(self.watch, node, group, through, <const u8*>PyBytes_AS_STRING(table),
                         PyBytes_GET_SIZE(table), state)

    def restored(self, u32 node, u32 group, u64 through, bytes table, u64 state):
        watch_restored(self.watch, node, group, through, <const u8*>PyBytes_AS_STRING(table),
                       PyBytes_GET_SIZE(table), state)

    def swapped(self, u32 node, u32 group, u64 through, bytes table, u64 state, bint anew=False):
        watch_swapped(self.watch, node, group, through, <const u8*>PyBytes_AS_STRING(table),
                      PyBytes_GET_SIZE(table), state, anew)

    def odd(self, u32 node, u32 group, u64 since):
        watch_odd(self.watch, node, group, since)

    def found(self, u32 node, u32 group, u64 equal, u64 differs):
        watch_found(self.watch, node, group, equal, differs)

    def marked(self, u32 node, u32 group, bint on):
        watch_marked(self.watch, node, group, on)

    def answers(self, u32 node, u32 group):
        return watch_answers(self.watch, node, group)

    def made_of(self, u32 node, u32 group, u64 through, bint odd, bint own):
        watch_made_of(self.watch, node, group, through, odd, own)

    def gives(self, u32 node, u32 group, u64 through, bint odd):
        watch_gives(self.watch, node, group, through, odd)

    def mended(self, u32 node, u32 group, u64 instance, bytes body):
        watch_mended(self.watch, node, group, instance, <const u8*>PyBytes_AS_STRING(body),
                     PyBytes_GET_SIZE(body))

    def wrote(self, u32 group, u64 hash):
        watch_wrote(self.watch, group, hash)

    def loaded(self, u32 node, u32 group, u64 hash):
        watch_loaded(self.watch, node, group, hash)

    def row(self, u32 node, u32 group, u64 kept_from, u64 settled):
        watch_row(self.watch, node, group, kept_from, settled)

    def cover(self, u32 node, u32 group, u64 cover):
        watch_cover(self.watch, node, group, cover)

    def tell_floor(self, u32 node, u32 group, u64 floor, u64 turn=0):
        engine_floor(self.engine_of(node), group, floor)
        watch_floored(self.watch, node, group, turn)

    def install(self, u32 node, u32 group, u64 through, u64 ballot, spoil=None):
        watch_installing(self.watch, node, group, through)
        engine_install(self.engine_of(node), group, through, ballot)
        if spoil is not None:
            spoil()
        watch_installed(self.watch, node, group, through)

    # --- an engine that is not as it should be

    def spoil(self, u32 node, u32 group, **fields):
        cdef Engine* e = self.engine_of(node)
        cdef Replica* r = find_group(e, group)
        for name, value in fields.items():
            if name == "promised":
                r.promised = value
            elif name == "chosen_through":
                r.chosen_through = value
            elif name == "settled_through":
                r.settled_through = value
            elif name == "floor":
                r.floor = value
            elif name == "applied_through":
                r.applied_through = value
            elif name == "suspect":
                r.suspect = value
            elif name == "cached_bytes":
                e.cached_bytes = value
            elif name == "pending_bytes":
                e.pending_bytes = value
            else:
                raise TypeError(name)

    def spoil_slot(self, u32 node, u32 group, u64 instance, u64 ballot, bytes body):
        cdef Replica* r = find_group(self.engine_of(node), group)
        cdef Slot* slot = window_slot(&r.window, instance)
        block_unref(slot.value)
        slot.value = block_copy(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        slot.ballot = ballot
        r.accepted_last = max(r.accepted_last, instance)

    def spoil_lead(self, u32 node, u32 group, u64 ballot, u64 lease_us):
        cdef Engine* e = self.engine_of(node)
        cdef Replica* r = find_group(e, group)
        cdef u32 i
        if r.lead == NULL:
            r.lead = phx_new[Lead]()
        r.role = ROLE_LEADING
        r.lead.ballot = ballot
        for i in range(e.n_slots):
            e.peers[i].lease_until_us = lease_us
        e.lease_version += 1

    # --- members

    def members(self, first):
        cdef u32 bits = 0
        for node in first:
            bits |= <u32>1 << (<u32>node - 1)
        watch_members(self.watch, bits)

    def know_members(self, u32 node, u32 group, u64 version, bytes roster, u64 instance, u64 floor,
                     bint active):
        if engine_change_known(self.engine_of(node), group, version,
                               <const u8*>PyBytes_AS_STRING(roster), PyBytes_GET_SIZE(roster),
                               instance, floor, active) != 0:
            raise ValueError("the engine refuses them")

    def leads(self, u32 node, u32 group, u64 epoch):
        watch_leads(self.watch, node, group, epoch)

    def members_row(self, u32 node, u32 group, u64 settled, u64 version):
        watch_members_row(self.watch, node, group, settled, version)

    def wiped(self, u32 node):
        watch_wiped(self.watch, node)

    def turn(self, u32 node, u64 number):
        self.watch.node[node - 1].turn = number

    # --- groups that come and go

    def created(self, u32 group, bytes roster):
        watch_created(self.watch, group, <const u8*>PyBytes_AS_STRING(roster),
                      PyBytes_GET_SIZE(roster))

    def over(self, u32 node, u32 group):
        watch_over(self.watch, node, group)

    def hosts(self, u32 node, u32 group, bint on):
        watch_hosts(self.watch, node, group, on)

    cdef int add_created(self, Engine* e, u32 group) except -1:
        if engine_add_group(e, group, 1, CREATED_BASE) != 0:
            raise ValueError("the engine refuses the group")
        engine_floor(e, group, CREATED_BASE + 1)
        return 0

    cdef int know(self, Engine* e, u32 group, bytes roster) except -1:
        if engine_change_known(e, group, rosters.read(roster)[0],
                               <const u8*>PyBytes_AS_STRING(roster), PyBytes_GET_SIZE(roster),
                               CREATED_BASE, CREATED_FLOOR, True) != 0:
            raise ValueError("the engine refuses its members")
        return 0

    def host(self, u32 node, u32 group, bytes roster):
        watch_row(self.watch, node, group, CREATED_BASE + 1, CREATED_BASE)
        self.add_created(self.engine_of(node), group)
        self.know(self.engine_of(node), group, roster)
        watch_hosted(self.watch, node, group, CREATED_BASE)

    def unhost(self, u32 node, u32 group):
        engine_drop_group(self.engine_of(node), group)
        watch_unhosted(self.watch, node, group)

    def begun(self, u32 node, u32 group):
        watch_begun(self.watch, node, group, CREATED_BASE)

    # --- read points

    def read_began(self, u32 group):
        return self.watch.announced[group]

    def announced(self, u32 group, u64 through):
        watch_announced(self.watch, group, through)

    def read_point(self, u32 node, u32 group, u64 known, u64 point):
        watch_read_point(self.watch, node, group, known, point)

    def publish(self, u32 node, u32 group, bint changed):
        cdef vector[u32] some
        cdef u32 other
        if self.published == NULL:
            self.published = published_new(self.n_groups)
            for other in range(self.n_groups):
                some.push_back(other)
        elif changed:
            some.push_back(group)
        publish(self.published, self.engine_of(node), &some)
        watch_published(self.watch, node, self.published, group)

    def writing(self):
        """The node's part is being written, or no longer."""
        phx_add(&self.published.node.sequence, 1)

    def point_while_chosen(self, u32 node, u32 group, u64 through):
        cdef Meanwhile meanwhile
        cdef u64 point = 0
        meanwhile.published = self.published
        meanwhile.engine = self.engine_of(node)
        meanwhile.group = group
        meanwhile.through = through
        if published_point(self.published, group, publish_meanwhile, &meanwhile,
                           &point) != POINT_OK:
            return None
        return point
