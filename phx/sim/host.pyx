# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""A host's life, its turn and its journal thread; see host.pxd."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memset

from phx._core.codec cimport RecordHeader, phx_crc32c
from phx._core.delivery cimport Sessions
from phx._core.disk cimport DiskApi
from phx._core.engine cimport (
    engine_advance, engine_counters, engine_durable, engine_free, engine_new,
    engine_poison, engine_replay, engine_restoring, engine_start, engine_turn,
)
from phx._core.journal cimport (
    JOURNAL_FULL, JOURNAL_MISSING, JournalCounters, journal_append, journal_close,
    journal_counters, journal_new, journal_next_lsn, journal_open, journal_replay, journal_sync,
)
from phx._core.memdisk cimport (
    MemoryDisk, memory_disk_api, memory_power_loss, memory_process_crash,
)
from phx._core.native cimport *
from phx._core.published cimport publish, published_new, published_unref
from phx._core.state cimport (
    ChosenRange, EVENT_BELOW, EVENT_CEILING, EVENT_FAILED, EVENT_HALTED, EVENT_LEADER,
    EVENT_MEMBERS, EVENT_PEER_REFUSED, Effects, Engine, EngineCounters, Event, Outgoing,
    PRESSURE_FULL,
)
from phx.sim.agenda cimport AT_APPLY, AT_RETRY, AT_SYNC, AT_TURN, AT_WAKE, AT_WRITE
from phx.sim.asking cimport reads_begin, reads_end, reads_turn
from phx.sim.catchup cimport (
    below, connected_to, facts_of, floors_open, forget_tasks, install_at, make_busy, raise_row,
    rows_open, soon, swap_in, tell_floor_of, trim_once,
)
from phx.sim.changing cimport members_changed, members_known, members_open
from phx.sim.chance cimport chance_between, chance_mix, chance_next, chance_ppm
from phx.sim.clock cimport clock_reaches, clock_shows
from phx.sim.diverging cimport halt_odd, pause_anew
from phx.sim.durability cimport (
    doubt, interval_passes, power_lost, relaxed_begin, rolled, row_changed, tell_durability,
    written_news,
)
from phx.sim.doctoring cimport raise_old_rows
from phx.sim.handing cimport entries_of, flow_chosen, go_on, question
from phx.sim.hosted cimport flow_begin, groups_begin, groups_open
from phx.sim.invariants cimport (
    Watch, watch_durable, watch_emitted, watch_fail, watch_replayed, watch_step,
)
from phx.sim.lives cimport ceiling_wanted, life_begins, life_lost, life_told, life_without
from phx.sim.saving cimport keep_ask, keep_begin, keep_crash, keep_open
from phx.sim.upkeep cimport note_floor, recycle, upkeep
from phx.sim.watch_kept cimport watch_mended, watch_wrote
from phx.sim.watch_lives cimport watch_died, watch_started
from phx.sim.watch_members cimport watch_leads
from phx.sim.watch_odd cimport (
    odd_found, odd_marked, odd_since, watch_gives, watch_marked, watch_odd_life,
)
from phx.sim.watch_reads cimport watch_published

cdef u64 JOURNAL_RETRY_US = 1000000
cdef u64 WALL_EPOCH_US = 1700000000000000


cdef struct Replaying:
    Watch* watch
    Engine* engine
    u32 node
    u64 records


cdef int replay_record(void* arg, const RecordHeader* header, const u8* body,
                       u64 lsn) noexcept nogil:
    cdef Replaying* to = <Replaying*>arg
    watch_replayed(to.watch, to.node, header, body, lsn)
    to.records += 1
    return engine_replay(to.engine, header, body, lsn)


# A journal is closed on the disk that it was opened on: a collector must not take that before.
@cython.no_gc_clear
cdef class Host:
    """Made by a World; see host.pxd."""

    def __dealloc__(self):
        self.close()

    # --- life

    cdef bint start(self) except -1:
        cdef int code
        cdef bint lost
        self.life += 1
        self.counts.starts += 1
        self.failing_start = self.disk.state.fail_after != 0
        if not raise_old_rows(self):
            self.why = "its journal cannot be read"
            self.counts.refused_starts += 1
            return False
        groups_begin(self)
        settled = self.store.settled()
        floors = floors_open(self)
        starts = keep_open(self, floors)
        if self.keep_dead:
            return False
        life_begins(self)
        code = self.open(settled, floors, starts, self.life == 1)
        if code == JOURNAL_MISSING and self.incarnation == 0 and not self.disk.state.dead:
            self.close()              # its first start was cut short
            code = self.open(settled, floors, starts, True)
        lost = life_lost(self, code)
        if lost:
            life_without(self)
            code = self.open(settled, floors, starts, True)
        if code != 0:
            self.refuse(code)
            return False
        if self.journal.counters.cut_bytes:
            self.counts.torn_tails += 1
        self.begin(settled, starts, lost)
        return True

    cdef int open(self, dict settled, dict floors, starts, bint create) except? -99:
        cdef Replaying replaying
        cdef DiskApi api
        cdef int code
        self.engine = engine_new(&self.engine_options)
        groups_open(self, settled)
        if self.first_members:
            members_open(self)
        rows_open(self, settled, floors)
        for group in starts:
            engine_restoring(self.engine, group, True)
        memory_disk_api(self.disk.state, &api)
        self.journal = journal_new(&api, &self.journal_options)
        replaying.watch = self.watch
        replaying.engine = self.engine
        replaying.node = self.node
        replaying.records = 0
        code = journal_open(self.journal, create)
        if code == 0:
            code = journal_replay(self.journal, replay_record, &replaying)
        self.counts.replayed += replaying.records
        return code

    # Not bootstrapped again: an empty folder under a known id would forget promises.
    cdef void refuse(self, int code):
        self.why = f"{code}: {(<bytes>self.journal.text).decode('utf-8', 'replace')}"
        self.counts.refused_starts += 1
        self.close()

    cdef void begin(self, dict settled, dict starts, bint lost):
        cdef vector[u64] through
        cdef size_t i
        cdef u64 now = self.agenda.now_us
        self.durable_lsn = journal_next_lsn(self.journal)
        life_told(self, lost)
        self.incarnation = engine_start(self.engine, self.durable_lsn, self.shows(), self.wall())
        for i in range(self.slots):
            through.push_back(settled.get(i, 0))
        watch_started(self.watch, self.node, self.engine, self.incarnation, through.data())
        watch_odd_life(self.watch, self.node)
        self.poisoned = False
        self.sessions = Sessions(self.node, self.groups, self.agreed_every)
        self.sessions.incarnation = self.incarnation
        self.machine = {group: self.machines(group) for group in self.groups}
        self.waiting = {}
        self.next_sequence = dict.fromkeys(self.groups, 1)
        self.failed = []
        self.halted = []
        reads_begin(self)
        self.published = published_new(<u32>through.size())
        self.flows.resize(through.size())
        hosted = set(self.groups)
        for i in range(through.size()):
            flow_begin(&self.flows[i], <u32>i, i in hosted, i in starts,
                       through[i] if i in hosted else 0)
        memset(self.connections, 0, sizeof(self.connections))
        self.turn_due = self.writing = self.sync_wanted = self.stuck = False
        self.settling = self.unsettled = self.apply_due = self.spare_due = False
        self.pressure = 0
        self.floors.clear()
        self.floor_lsn = 0
        self.settle_after_us = 0
        self.retire_bytes = 0
        self.chosen_us = now
        self.paused_until_us = self.blocked_until_us = 0
        self.plan = None
        self.wake_token += 1
        self.note(self.incarnation)
        keep_begin(self)
        self.mending.begin()
        self.comparing.begin()
        relaxed_begin(self)
        if self.hosting is not None:
            self.hosting.begin()
        self.poke()

    cdef void crash(self, bint power):
        if self.engine == NULL:
            return
        self.count()
        self.close()
        watch_died(self.watch, self.node)
        if power:
            memory_power_loss(self.disk.state, chance_next(&self.chance))
            self.store.power_loss()
            power_lost(self)
        else:
            memory_process_crash(self.disk.state)
        keep_crash(self, power)
        forget_tasks(self)
        reads_end(self)

    # Its disk stopped while the journal was being opened.
    cdef void die_at_start(self, bint power):
        if power:
            memory_power_loss(self.disk.state, chance_next(&self.chance))
            self.store.power_loss()
            power_lost(self)
        else:
            memory_process_crash(self.disk.state)
        keep_crash(self, power)
        forget_tasks(self)

    cdef bint disk_failing(self) noexcept:
        return self.failing_start or self.disk.state.bytes_max != 0

    cdef void add_counts(self, bint out):
        cdef JournalCounters counters
        cdef const u64* from_engine = <const u64*>engine_counters(self.engine)
        cdef u64* total = <u64*>&self.engine_totals
        cdef size_t i
        cdef i64 sign = -1 if out else 1
        for i in range(sizeof(EngineCounters) // sizeof(u64)):
            total[i] += <u64>(sign * <i64>from_engine[i])
        journal_counters(self.journal, &counters)
        self.counts.rolls += <u64>(sign * counters.rolls)
        self.counts.syncs += <u64>(sign * counters.syncs)

    cdef void count(self):
        self.add_counts(False)

    cdef void uncount(self):
        self.add_counts(True)

    cdef void close(self):
        cdef size_t i
        for i in range(self.queue.size()):
            block_unref(self.queue[i].block)
        for i in range(self.held.size()):
            block_unref(self.held[i].frame)
        for i in range(self.ready.size()):
            block_unref(self.ready[i].frame)
        self.queue.clear()
        self.held.clear()
        self.ready.clear()
        self.asked.clear()
        self.plan = None
        published_unref(self.published)
        self.published = NULL
        if self.journal != NULL:
            journal_close(self.journal)
            self.journal = NULL
        if self.engine != NULL:
            engine_free(self.engine)
            self.engine = NULL

    # --- small things

    cdef void note(self, u64 word) noexcept:
        self.digest = chance_mix(self.digest ^ word) + self.agenda.now_us

    cdef u64 shows(self) noexcept:
        return clock_shows(&self.clock, self.agenda.now_us)

    cdef u64 wall(self) noexcept:
        return <u64>(<i64>(WALL_EPOCH_US + self.agenda.now_us) + self.clock.wall_us)

    cdef void touch(self, u32 group) noexcept:
        cdef size_t i
        for i in range(self.touched.size()):
            if self.touched[i] == group:
                return
        self.touched.push_back(group)

    cdef void apply_soon(self, u64 after_us):
        if not self.apply_due:
            self.apply_due = True
            self.agenda.push(self.agenda.now_us + after_us, AT_APPLY, self.index, self.life, 0, 0,
                             NULL)

    # Something was put in: a turn will follow.
    cdef void poke(self) noexcept:
        if self.turn_due or self.engine == NULL:
            return
        self.turn_due = True
        self.agenda.push(
            self.agenda.now_us + chance_between(&self.chance, 1, self.pace.turn_us_max), AT_TURN,
            self.index, self.life, 0, 0, NULL)

    # --- the turn of the poll thread

    cdef int turn(self) except -1:
        cdef Effects* out
        cdef size_t i
        cdef bint inline_ = False
        self.turn_due = False
        self.turns += 1
        self.watch.node[self.index].turn = self.turns
        self.heard_bytes = 0
        interval_passes(self)
        engine_advance(self.engine, self.shows(), self.wall())
        for i in range(self.engine.dirty.size()):
            self.touch(self.engine.replicas[self.engine.dirty[i]].group)
        out = engine_turn(self.engine)
        publish(self.published, self.engine, &out.republish)
        self.lsn_end = out.lsn_end
        if out.records != NULL:
            self.take_records(out)
        note_floor(self, out)
        # A value may be given up and become known as chosen in one turn, in this order only.
        for i in range(out.events.size()):
            self.take_event(&out.events[i])
        for i in range(out.chosen.size()):
            self.note(out.chosen[i].last ^ (<u64>out.chosen[i].group << 48))
            flow_chosen(self, &out.chosen[i])
            self.touch(out.chosen[i].group)
        for i in range(out.outgoing.size()):
            self.take_frame(&out.outgoing[i])
        for i in range(out.fetches.size()):
            question(self, &out.fetches[i])
        reads_turn(self, out)
        for i in range(self.touched.size()):
            watch_step(self.watch, self.node, self.touched[i])
        self.touched.clear()
        watch_published(self.watch, self.node, self.published,
                        <u32>(self.turns % self.flows.size()))
        self.wake(out.wake_at_us)
        if not self.queue.empty() and not self.writing and not self.stuck:
            inline_ = chance_ppm(&self.chance, self.pace.inline_ppm)
            self.write(inline_)
        written_news(self)
        upkeep(self)
        return 0

    cdef void wake(self, u64 at_us) noexcept:
        cdef u64 at = clock_reaches(&self.clock, at_us, self.agenda.now_us)
        self.wake_token += 1
        if at <= self.agenda.now_us:
            self.idle_turns += 1
            if self.idle_turns > 500:
                watch_fail(self.watch, b"liveness",
                           b"a node asks again and again to be woken at once")
            at = self.agenda.now_us + 50
        else:
            self.idle_turns = 0
        if at < (<u64>1 << 62):
            self.agenda.push(at, AT_WAKE, self.index, self.life, self.wake_token, 0, NULL)

    cdef int take_records(self, Effects* out) except -1:
        cdef Queued item
        watch_emitted(self.watch, self.node, out.records.data, out.records.size, out.lsn_first)
        self.note(phx_crc32c(0, out.records.data, out.records.size))
        if self.tracing is not None:
            self.tracing.append((self.agenda.now_us, "emit", self.node, out.lsn_first,
                                 (<char*>out.records.data)[:out.records.size]))
        item.block = out.records
        item.lsn_first = out.lsn_first
        item.lsn_end = out.lsn_end
        item.sync = out.sync
        item.write = out.write
        item.urgent = self.pressure == PRESSURE_FULL or out.floor_lsn != 0
        out.records = NULL
        self.queue.push_back(item)
        return 0

    cdef int take_event(self, const Event* event) except -1:
        if event.kind == EVENT_FAILED:
            self.note(event.first_seq ^ (<u64>event.verdict << 56))
            self.failed.append((event.group, event.first_seq, event.count, event.verdict))
        elif event.kind == EVENT_HALTED:
            watch_fail(self.watch, b"halted", b"a group halted: the engine saw a broken invariant")
        elif event.kind == EVENT_PEER_REFUSED:
            watch_fail(self.watch, b"halted", b"a peer was refused: another store id")
        elif event.kind == EVENT_BELOW:
            below(self, event)
        elif event.kind == EVENT_CEILING:
            ceiling_wanted(self, event.first_seq)
        elif event.kind == EVENT_MEMBERS:
            members_changed(self, event)
        elif event.kind == EVENT_LEADER and self.first_members and event.leader == self.node:
            watch_leads(self.watch, self.node, event.group, event.first_seq)
        return 0

    cdef void take_frame(self, const Outgoing* out) noexcept:
        cdef Held item
        cdef int peer
        item.after = out.after
        item.frame = out.frame
        item.turn = self.turns
        item.dest = HELD_ALL
        if out.peer:
            item.dest = self.peer_index[out.peer]
        for peer in range(16):
            item.connections[peer] = self.connections[peer]
        if out.after <= self.durable_lsn:
            self.ready.push_back(item)
        else:
            self.held.push_back(item)

    # Frames whose records are durable may leave, in the order in which they were made.
    cdef void release(self) noexcept:
        cdef size_t i, kept = 0
        for i in range(self.held.size()):
            if self.held[i].after <= self.durable_lsn:
                self.ready.push_back(self.held[i])
            else:
                self.held[kept] = self.held[i]
                kept += 1
        self.held.resize(kept)

    # --- the journal thread

    # Everything that is queued, then one sync for all of it.
    cdef void write(self, bint inline_):
        cdef u64 after = chance_between(&self.chance, 1, self.pace.write_us_max)
        self.writing = True
        if inline_:
            self.written(True)
        else:
            self.agenda.push(self.agenda.now_us + after, AT_WRITE, self.index, self.life, 0, 0,
                             NULL)

    cdef void written(self, bint inline_):
        cdef size_t done = 0, i, urgent = 0
        cdef int code = 0
        cdef bint sync = self.sync_wanted, write = False
        cdef Queued* item
        # What stands before an urgent block is as urgent as it is: the stream has no gaps.
        for i in range(self.queue.size()):
            if self.queue[i].urgent:
                urgent = i + 1
        while done < self.queue.size() and not self.poisoned:
            item = &self.queue[done]
            code = journal_append(self.journal, item.block, item.lsn_first, done < urgent)
            if code == JOURNAL_FULL:
                break
            sync = sync or item.sync
            write = write or item.write
            block_unref(item.block)
            done += 1
            if code != 0:
                break
        for i in range(done, self.queue.size()):
            self.queue[i - done] = self.queue[i]
        self.queue.resize(self.queue.size() - done)
        self.sync_wanted = False
        if code == JOURNAL_FULL:
            self.counts.full += 1
            self.stuck = True
            self.agenda.push(self.agenda.now_us + JOURNAL_RETRY_US, AT_RETRY, self.index,
                             self.life, 0, 0, NULL)
        elif code != 0:
            self.poison(code)
            return
        written_news(self)
        if not sync:
            if write:
                rolled(self)
            self.writing = False
            self.write_more()
        elif inline_:
            self.synced()
        else:
            self.agenda.push(self.agenda.now_us + self.sync_time_us(), AT_SYNC, self.index,
                             self.life, 0, 0, NULL)

    cdef u64 sync_time_us(self):
        if chance_ppm(&self.chance, self.pace.slow_sync_ppm):
            return chance_between(&self.chance, 1000, self.pace.slow_sync_us)
        return chance_between(&self.chance, self.pace.sync_us_min, self.pace.sync_us_max)

    cdef void write_more(self):
        if not self.queue.empty() and not self.stuck and not self.poisoned:
            self.write(False)

    cdef void synced(self):
        cdef i64 lsn = journal_sync(self.journal)
        if lsn < 0:
            self.poison(<int>lsn)
            return
        self.writing = False
        self.take_durable(<u64>lsn)
        self.write_more()
        self.poke()

    cdef void take_durable(self, u64 lsn):
        self.counts.durables += 1
        self.durable_lsn = lsn
        self.losing = False
        self.note(self.durable_lsn)
        if self.tracing is not None:
            self.tracing.append((self.agenda.now_us, "durable", self.node, self.durable_lsn))
        watch_durable(self.watch, self.node, self.durable_lsn)
        engine_durable(self.engine, self.durable_lsn)
        self.release()
        recycle(self)

    cdef void retry(self):
        if self.stuck:
            self.stuck = False
            if not self.writing:
                self.write_more()

    cdef void poison(self, int code):
        if self.poisoned or self.disk.state.dead:
            return                    # (a disk that is dead: the host dies with it)
        self.poisoned = True
        self.writing = False
        self.counts.poisoned += 1
        self.note(<u64>-code)
        if self.tracing is not None:
            self.tracing.append((self.agenda.now_us, "poisoned", self.node, code))
        engine_poison(self.engine)
        doubt(self)
        self.poke()

    # --- for Python, see host.pyi

    @property
    def now_us(self):
        return self.agenda.now_us

    @property
    def up(self):
        return self.engine != NULL

    @property
    def durable(self):
        return self.durable_lsn

    def durability(self, u32 group, u64 within_us):
        return tell_durability(self, group, within_us)

    def row_changed(self, before, after):
        row_changed(self, before, after)

    def soon(self, u64 after_us, what):
        soon(self, after_us, what)

    def facts(self, u32 group):
        return facts_of(self, group)

    def connected(self):
        return connected_to(self)

    def busy(self, u32 group, bint on):
        return make_busy(self, group, on)

    def raise_floor(self, u32 group, u64 kept_from, u64 settled):
        return raise_row(self, group, kept_from, settled)

    def tell_floor(self, u32 group):
        tell_floor_of(self, group)

    def swap(self, u32 group, machine, bytes table, u64 frontier, u64 read, bint odd, bint own,
             members):
        return swap_in(self, group, machine, table, frontier, read, odd, own, members)

    def know(self, u32 group, told):
        members_known(self, group, told)

    def install(self, u32 group, u64 through, u64 ballot):
        install_at(self, group, through, ballot)

    def pause_anew(self, u32 group):
        pause_anew(self, group)

    def halt_odd(self, u32 group, u64 equal, u64 differs, str why):
        halt_odd(self, group, equal, differs, why)

    def odd(self, u32 group):
        return odd_since(self.watch, self.node, group)

    def found(self, u32 group):
        return odd_found(self.watch, self.node, group)

    def marked(self, u32 group):
        return odd_marked(self.watch, self.node, group)

    def mark(self, u32 group, bint on):
        watch_marked(self.watch, self.node, group, on)

    def gives(self, u32 group, u64 frontier, bint odd):
        watch_gives(self.watch, self.node, group, frontier, odd)

    def trace(self, str what, u32 group, str text):
        if self.tracing is not None:
            self.tracing.append((self.agenda.now_us, what, self.node, f"g{group}", text))

    def broken(self, str kind, str why):
        watch_fail(self.watch, kind.encode(), why.encode()[:300])

    def entries(self, u32 group, u64 first, u64 last):
        return entries_of(self, group, first, last)

    def mended(self, dict bodies):
        cdef bytes body
        for (group, instance), body in bodies.items():
            self.note(<u64>instance ^ <u64>group << 48)
            watch_mended(self.watch, self.node, group, instance,
                         <const u8*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        go_on(self)

    def checkpoint(self, u32 group):
        keep_ask(self, group)

    def wrote(self, u32 group, u64 hash):
        watch_wrote(self.watch, group, hash)

    def trim(self):
        return trim_once(self)
