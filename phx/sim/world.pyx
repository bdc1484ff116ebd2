# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Links, dispatch, life and death of hosts, and Python's door; see world.pxd and world.pyi."""

from collections import deque as Deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memset

from phx._core.batch cimport ItemHeader
from phx._core.engine cimport (
    engine_group_status, engine_priority, engine_resign, engine_submit, engine_transfer,
)
from phx._core.memdisk cimport MemoryDisk
from phx._core.native cimport *
from phx._core.state cimport GroupStatus
from phx.sim.agenda cimport *
from phx.sim.chance cimport *
from phx.sim.clock cimport clock_set, clock_shows
from phx.sim.catchup cimport task
from phx.sim.damage cimport flip_record
from phx.sim.equip cimport CLUSTER, equip, pace_of
from phx.sim.handing cimport answer, apply, fail_calls, stop
from phx.sim.host cimport HELD_ALL, Held, Host, LogFlow, find_flow
from phx.sim.invariants cimport (
    Watch, watch_fail, watch_free, watch_full, watch_leases, watch_new, watch_sent,
)
from phx.sim.losing cimport (
    change_store, elsewhere, lose_journal, spares_a_majority, with_power,
)
from phx.sim.network cimport arrive, dial, dial_soon, hang_up, link_set, silence, transmit, wire_us
from phx.sim.saving cimport keep_ask, keep_event, restore
from phx.sim.upkeep cimport commit, make_spare, settle_all, settled
from phx.sim.watch_callers cimport watch_submitted, watch_submitting
from phx.sim.watch_lives cimport watch_created, watch_over

from phx.sim.comparing import Comparing
from phx.sim.directory import Directory
from phx.sim.fetching import Fetching
from phx.sim.hosting import Hosting
from phx.sim.mending import Mending
from phx.sim.oddness import Oddness
from phx.sim.pipes import Net
from phx.sim.providing import Provider
from phx.sim.settings import LIMITS, LINK, PACE
from phx.sim.handing import UNKNOWN, VERDICTS
from phx.sim.violation import Violation

cdef int NOT_HOSTED = 4            # as "not leader": whoever asks tries elsewhere
cdef u64 FULL_CHECK_STEPS = 400
cdef u64 CLOCK_PPM_OFF = 50000       # two clocks so far off differ by less than an eighth
cdef u64 LEASES_SETTLE_US = 5000000  # after a clock was out of bounds

TRACE_EVENTS = 4000


cdef dict merged(dict base, dict changes, str what):
    if changes:
        unknown = set(changes) - set(base)
        if unknown:
            raise TypeError(f"no such {what}: {sorted(unknown)}")
    return {**base, **(changes or {})}


cdef class World:
    """See world.pyi."""

    def __cinit__(self, u64 seed, u32 nodes, u32 groups, *, machines, limits=None):
        cdef Host host
        cdef Link* link
        cdef u32 i
        if not 1 <= nodes <= 15 or not 1 <= groups <= 4096:
            raise ValueError("1 to 15 nodes, 1 to 4096 groups")
        cdef dict all_limits = merged(LIMITS, limits, "limit")
        self.agenda = Agenda()
        self.n = nodes
        self.groups = list(range(groups))
        self.hosts = []
        self.watch = watch_new(nodes, groups + all_limits["created"])
        self.watch.configured = groups
        self.watch.value_bytes_max = all_limits["value_bytes_max"]
        self.links.resize(nodes * nodes)
        for i in range(nodes * nodes):
            link = &self.links[i]
            memset(link, 0, sizeof(Link))
            link.chance = chance_of(seed, i + 1)
            link.queue_bytes_max = 1 << 21
            link_set(link, LINK)
        self.calls = {}
        self.damaged_nodes = set()
        self.power_next = {}
        for i in range(nodes):
            host = Host()
            host.node = i + 1
            host.index = i
            host.agenda = self.agenda
            host.watch = self.watch
            host.groups = host.configured = self.groups
            equip(host, seed, nodes, all_limits, machines)
            self.hosts.append(host)
        self.net = Net(self, seed)
        self.oddness = Oddness(nodes)
        if all_limits["created"]:
            self.directory = Directory(self, range(groups, groups + all_limits["created"]))
        peers = {host.node: host for host in self.hosts}
        for host in self.hosts:
            host.fetching = Fetching(host, self.net, peers, CLUSTER, host.machines,
                                     seed + host.node)
            host.comparing = Comparing(host, self.net, peers, CLUSTER, seed + host.node,
                                       every_us=all_limits["compare_us"],
                                       agreed_every=all_limits["agreed_every"])
            if all_limits["compare_us"]:
                host.keeping.oddness = self.oddness
            host.mending = Mending(host, self.net, peers, CLUSTER, seed + host.node)
            if self.directory is not None:
                host.hosting = Hosting(host, self.directory, seed + host.node)
            host.store.on_damage = host.mending.suspect

    def __dealloc__(self):
        watch_free(self.watch)

    def close(self):
        """Everything of the hosts is given back."""
        cdef Host host
        for host in self.hosts:
            host.close()
            host.machines = None
            host.waiting = {}
            host.fetching = host.trimming = host.provider = host.mending = None
            host.comparing = host.relaxing = host.hosting = None
            host.store.on_damage = None
            host.tasks = {}
        self.calls = {}
        self.net = self.directory = None
        self.agenda.clear()

    # --- time

    @property
    def now_us(self):
        return self.agenda.now_us

    @property
    def steps(self):
        return self.agenda.steps

    def call_at(self, u64 at_us, what):
        self.call_number += 1
        self.calls[self.call_number] = what
        self.agenda.push(at_us, AT_CALL, 0, 0, self.call_number, 0, NULL)

    def run(self, u64 until_us):
        cdef Happening what
        while self.agenda.pop(until_us, &what):
            self.watch.now_us = self.agenda.now_us
            self.dispatch(&what)
            if self.watch.failed:
                self.check_failed()
            if self.agenda.steps >= self.checked_steps + FULL_CHECK_STEPS:
                self.checked_steps = self.agenda.steps
                watch_full(self.watch)
                if self.watch.failed:
                    self.check_failed()
        self.agenda.now_us = until_us
        self.watch.now_us = until_us

    def check(self):
        watch_full(self.watch)
        self.check_failed()

    cdef void check_failed(self):
        if self.watch.failed:
            raise Violation((<bytes>self.watch.kind).decode(), (<bytes>self.watch.text).decode(),
                            self.agenda.now_us)

    # --- what happens

    cdef int dispatch(self, Happening* what) except -1:
        cdef Host host
        if what.kind == AT_CALL:
            self.calls.pop(what.a)()
            return 0
        if what.kind == AT_DIAL:
            self.links[what.a].dialing = False
            dial(self, <u32>(what.a // self.n), <u32>(what.a % self.n))
            return 0
        host = <Host>(<list>self.hosts)[what.host]
        if host.engine != NULL and self.agenda.now_us < host.paused_until_us:
            self.agenda.postpone(what, host.paused_until_us)
            return 0
        if what.kind == AT_ARRIVE:
            arrive(self, what)
        elif what.kind == AT_RESET:
            if host.engine != NULL and host.connections[what.a // self.n] == what.b:
                hang_up(self, host, <u32>(what.a // self.n), False)
        elif what.kind == AT_SILENCE:
            silence(self, what)
        elif host.engine != NULL and host.life == what.life:
            self.host_event(host, what)
        self.serve(host)
        return 0

    cdef int host_event(self, Host host, Happening* what) except -1:
        if what.kind == AT_TURN:
            host.turn()
        elif what.kind == AT_WAKE:
            if what.a == host.wake_token:
                host.poke()
        elif what.kind == AT_WRITE:
            host.written(False)
        elif what.kind == AT_SYNC:
            host.synced()
        elif what.kind == AT_RETRY:
            host.retry()
        elif what.kind == AT_SPARE:
            make_spare(host)
        elif what.kind == AT_COMMIT:
            commit(host)
        elif what.kind == AT_SETTLED:
            settled(host)
        elif what.kind == AT_FETCH:
            answer(host, what.a)
        elif what.kind == AT_APPLY:
            apply(host)
        elif what.kind == AT_KEEP:
            keep_event(host, what.a)
        elif what.kind == AT_RESTORE:
            restore(host, <u32>what.a)
        elif what.kind == AT_TASK:
            task(host, what.a)
        return 0

    # Whatever a step of the host has left to be done.
    cdef int serve(self, Host host) except -1:
        cdef size_t i, peer
        cdef Held* item
        if host.engine == NULL:
            return 0
        if host.disk.state.dead or host.keep_dead:
            self.count_torn(host)
            self.bring_down(host, self.power_next.pop(host.index, True))
            return 0
        for i in range(host.ready.size()):
            item = &host.ready[i]
            watch_sent(self.watch, host.node, item.frame.data, item.frame.size, item.turn)
            if item.dest != HELD_ALL:
                transmit(self, host, item, item.dest)
            else:
                for peer in range(self.n):
                    if peer != host.index:
                        transmit(self, host, item, <u32>peer)
            block_unref(item.frame)
        host.ready.clear()
        if host.failed or host.halted:
            fail_calls(host)
        return 0

    # --- life and death

    cdef void count_torn(self, Host host):
        if host.disk.state.dead:
            self.counts.torn_operations += 1
        else:
            self.counts.torn_checkpoints += 1

    cdef Host host_of(self, node):
        if not 1 <= node <= self.n:
            raise ValueError(f"no node {node}")
        return <Host>(<list>self.hosts)[node - 1]

    cdef bint bring_up(self, Host host) except -1:
        cdef u32 peer
        if host.engine != NULL:
            return True
        host.tracing = self.events
        host.provider = Provider(host, CLUSTER)
        if host.start():
            for peer in range(self.n):
                if peer != host.index:
                    dial_soon(self, host.index, peer, chance_between(
                        &link_of(self, host.index, peer).chance, 100, 5000))
            return True
        if host.disk.state.dead or host.keep_dead:
            self.count_torn(host)
            self.counts.deaths_at_start += 1
            host.die_at_start(with_power(self, host, self.power_next.pop(host.index, True)))
        elif host.node not in self.damaged_nodes and not host.disk_failing():
            watch_fail(self.watch, b"U3",
                       f"node {host.node} refuses a journal that nobody damaged: {host.why}"
                       .encode()[:300])
        return False

    cdef void bring_down(self, Host host, bint power):
        cdef u32 peer
        cdef u64 now = self.agenda.now_us
        if host.engine == NULL:
            return
        power = with_power(self, host, power)
        self.counts.crashes += 1
        self.counts.power_losses += power
        if self.tracing:
            self.events.append((now, "power loss" if power else "crash", host.node))
        for call in list(host.waiting.values()):
            call.died(now)
        host.waiting = {}
        for peer in range(self.n):
            if host.connections[peer] and not power and not link_of(self, host.index, peer).blocked:
                self.agenda.push(now + 200, AT_RESET, peer, 0, host.index * self.n + peer,
                                 host.connections[peer], NULL)
            host.connections[peer] = 0
        self.power_next.pop(host.index, None)
        host.crash(power)
        self.net.died(host.node)

    # --- callers

    def submit(self, node, u32 group, list values, u64 timeout_us, list calls):
        cdef Host host = self.host_of(node)
        cdef Block* block
        cdef ItemHeader header
        cdef vector[u64] ops
        cdef u64 op, first, at = 0
        cdef int verdict
        if host.engine == NULL:
            raise RuntimeError(f"node {node} is down")
        if group >= host.slots or not values or len(values) != len(calls):
            raise ValueError("a group of this world, and one call for each value")
        if find_flow(host, group) == NULL:
            return NOT_HOSTED
        block = block_new(64)
        header.machine = 0
        header.flags = 0
        for value in values:
            op = watch_submitting(self.watch)
            ops.push_back(op)
            header.bytes = <u32>(8 + PyBytes_GET_SIZE(<bytes?>value))
            if header.bytes > host.engine_options.value_bytes_max:
                block_unref(block)
                raise ValueError("a value is at most value_bytes_max - 8 bytes long")
            block = block_append(block, &header, sizeof(header))
            block = block_append(block, &op, 8)
            block = block_append(block, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        first = host.next_sequence[group]
        verdict = engine_submit(host.engine, group, first, <u32>ops.size(), block, 0, block.size,
                                host.shows() + timeout_us)
        if verdict == 0:
            host.next_sequence[group] = first + ops.size()
            for i in range(len(values)):
                call = calls[i]
                call.op = ops[i]
                host.waiting[<u64>group << 48 | (first + i)] = call
                at += sizeof(header)
                watch_submitted(self.watch, host.node, group, first + i, block.data + at,
                                8 + PyBytes_GET_SIZE(<bytes>values[i]))
                at += 8 + PyBytes_GET_SIZE(<bytes>values[i])
            host.touch(group)
            host.poke()
        block_unref(block)
        return verdict

    # --- faults

    def start(self, node):
        cdef Host host = self.host_of(node)
        if self.tracing and self.events is None:
            self.events = Deque(maxlen=TRACE_EVENTS)
        up = self.bring_up(host)
        if self.tracing:
            self.events.append((self.agenda.now_us, "start" if up else "no start", host.node,
                                "" if up else host.why))
        self.check_failed()
        return bool(up)

    def crash(self, node, bint power):
        self.bring_down(self.host_of(node), power)

    def crash_at_operation(self, node, u64 operation, bint power):
        cdef Host host = self.host_of(node)
        self.power_next[host.index] = power
        host.disk.crash_at(operation)

    def link(self, source, dest, **settings):
        cdef u32 a = self.host_of(source).index
        cdef u32 b = self.host_of(dest).index
        cdef Link* link = link_of(self, a, b)
        link_set(link, merged({
            "delay_us_min": link.delay_us_min, "delay_us_max": link.delay_us_max,
            "loss_ppm": link.loss_ppm, "twice_ppm": link.twice_ppm, "late_ppm": link.late_ppm,
            "late_us": link.late_us, "flip_ppm": link.flip_ppm,
            "bytes_per_ms": link.bytes_per_ms, "blocked": link.blocked,
        }, settings, "setting of a link"))

    def apart(self, a, b, bint apart):
        cdef Host one = self.host_of(a), other = self.host_of(b)
        link_of(self, one.index, other.index).apart = apart
        link_of(self, other.index, one.index).apart = apart
        if apart:
            self.reset(a, b)

    def reset(self, a, b):
        cdef Host one = self.host_of(a), other = self.host_of(b)
        hang_up(self, one, other.index, False)
        hang_up(self, other, one.index, False)
        self.net.cut(a, b)

    def wire(self, source, dest, u64 nbytes):
        return wire_us(self, self.host_of(source), self.host_of(dest), nbytes)

    def pause(self, node, u64 us):
        cdef Host host = self.host_of(node)
        host.paused_until_us = max(host.paused_until_us, self.agenda.now_us + us)

    def block_machines(self, node, u64 us):
        cdef Host host = self.host_of(node)
        host.blocked_until_us = max(host.blocked_until_us, self.agenda.now_us + us)

    def clock(self, node, u64 rate_ppm=1000000, u64 jump_us=0, i64 wall_us=0):
        cdef Host host = self.host_of(node)
        clock_set(&host.clock, self.agenda.now_us, rate_ppm, jump_us)
        host.clock.wall_us = wall_us
        self._bound_clocks(jump_us != 0)
        # An engine asked to be woken by the clock as it was.
        if host.engine != NULL:
            host.poke()

    # Leases are claimed for clocks that run nearly alike and never jump.
    def _bound_clocks(self, bint jumped):
        cdef Host host
        cdef bint off = False
        for host in self.hosts:
            if not 1000000 - CLOCK_PPM_OFF <= host.clock.rate_ppm <= 1000000 + CLOCK_PPM_OFF:
                off = True
        if jumped or (self.watch.leases_void and not off):
            self.watch.leases_from_us = self.agenda.now_us + LEASES_SETTLE_US
        self.watch.leases_void = off

    def pace(self, node, **settings):
        cdef Host host = self.host_of(node)
        host.pace = pace_of(merged(host.pace, settings, "pace"))

    def fail_disk(self, node, kind, u64 after, int error):
        cdef Host host = self.host_of(node)
        # (Where groups are relaxed, a journal that fails makes their votes doubtful.)
        if host.relaxing is None or spares_a_majority(self, host):
            host.disk.fail(kind, after, error)

    def fill_disk(self, node, u64 bytes_free):
        cdef Host host = self.host_of(node)
        cdef MemoryDisk disk = host.disk
        cdef u64 used = 0
        cdef size_t i
        for i in range(disk.state.files.size()):
            if disk.state.files[i].seen:
                used += disk.state.files[i].now.size()
        disk.set_bytes_max(used + bytes_free if bytes_free else 0)

    def fail_store(self, node, int times):
        cdef Host host = self.host_of(node)
        host.store.failing = host.store.failing + times

    def flip_journal(self, node, u64 which, u64 bit):
        cdef Host host = self.host_of(node)
        # (Where damage counts as loss, `lose_journal` does this, and counts the losers.)
        if host.rejoins or not flip_record(self.watch, host, which, bit):
            return False
        self.damaged_nodes.add(host.node)
        return True

    def lose_journal(self, node, bint damaged, u64 which, u64 bit):
        return lose_journal(self, self.host_of(node), damaged, which, bit)

    def lose_store(self, node):
        cdef Host host = self.host_of(node)
        if not host.rejoins:  # facts of lives would have to be learned from the journal
            change_store(self, host, None)

    def copy_store(self, node):
        cdef Host host = self.host_of(node)
        host.store_copy = host.store.copy()

    def put_store_back(self, node):
        cdef Host host = self.host_of(node)
        if host.store_copy is not None and not host.rejoins:
            change_store(self, host, host.store_copy)

    def flip_store(self, node, which, bit):
        cdef Host host = self.host_of(node)
        return host.store.flip(which, bit)

    def scrub(self, node):
        cdef Host host = self.host_of(node)
        if host.engine != NULL:
            host.mending.scrub()

    def checkpoint(self, node, u32 group):
        cdef Host host = self.host_of(node)
        if host.engine != NULL:
            keep_ask(host, group)

    def crash_at_keep(self, node, int effect, bint power):
        cdef Host host = self.host_of(node)
        self.power_next[host.index] = power
        host.keeping.crash_at(effect)

    def crash_at_hosting(self, node, step, bint power):
        cdef Host host = self.host_of(node)
        if host.hosting is not None:
            self.power_next[host.index] = power
            host.hosting.dies_in = step

    def fill_keep(self, node, bytes_free):
        self.host_of(node).keeping.fill(bytes_free)

    def flip_checkpoint(self, node, which, bit):
        cdef Host host = self.host_of(node)
        group = host.keeping.flip(which, bit, lambda group: not elsewhere(self, host, group))
        if group is None:
            return False
        host.keep_excused.add(group)
        return True

    def flip_staging(self, node, which, bit):
        cdef Host host = self.host_of(node)
        # (What was verified already is a checkpoint: see flip_checkpoint.)
        return not host.fetching.installing and host.keeping.flip_staging(which, bit)

    def providing(self):
        cdef Host host
        return [host.node for host in self.hosts if host.provider is not None
                and host.provider.sending]

    def cut_transfers(self, node):
        cdef Host host = self.host_of(node)
        return 0 if host.provider is None else host.provider.cut()

    def stop_machine(self, node, u32 group):
        cdef Host host = self.host_of(node)
        cdef LogFlow* flow = find_flow(host, group)
        if host.engine != NULL and not flow.stopped:
            stop(host, flow, "as planned")

    def settle(self, node):
        cdef Host host = self.host_of(node)
        if host.engine != NULL and not host.poisoned:
            settle_all(host)

    def transfer(self, node, group, to):
        cdef Host host = self.host_of(node)
        if host.engine != NULL:
            engine_transfer(host.engine, group, to)
            host.poke()

    def priority(self, node, u32 priority):
        cdef Host host = self.host_of(node)
        if host.engine != NULL:
            engine_priority(host.engine, priority)
            host.poke()

    def resign(self, node):
        cdef Host host = self.host_of(node)
        if host.engine != NULL:
            engine_resign(host.engine)
            host.poke()

    def heal(self, node):
        cdef Host host = self.host_of(node)
        cdef u32 peer
        for peer in range(self.n):
            if peer != host.index:
                self.link(node, peer + 1, **LINK)
                self.link(peer + 1, node, **LINK)
                self.apart(node, peer + 1, False)
        self.clock(node)
        host.pace = pace_of(PACE)
        host.paused_until_us = host.blocked_until_us = 0
        host.store.failing = 0
        host.disk.set_bytes_max(0)
        host.keeping.heal()
        if not host.disk.state.dead:
            host.disk.state.crash_operation = host.disk.state.fail_after = 0

    # --- questions

    def group_created(self, u32 group, bytes roster):
        watch_created(self.watch, group, <const u8*>PyBytes_AS_STRING(roster),
                      PyBytes_GET_SIZE(roster))

    def group_over(self, u32 group, u32 node):
        watch_over(self.watch, node, group)

    def host(self, node):
        return self.host_of(node)

    def runs(self, node, u32 group):
        cdef Host host = self.host_of(node)
        return host.engine != NULL and find_flow(host, group) != NULL

    def alive(self, node):
        cdef Host host = self.host_of(node)
        return host.engine != NULL and not host.poisoned

    def running(self, node):
        return self.host_of(node).engine != NULL

    def damaged(self, node):
        return node in self.damaged_nodes

    def holes(self):
        cdef Host host, other
        found = {}
        for host in self.hosts:
            if host.engine == NULL or host.node in self.damaged_nodes:
                continue
            left = [hole for hole in host.store.holes.all()
                    if any([other.store.keeps(hole) for other in self.hosts
                            if other is not host and other.engine != NULL])]
            if left:
                found[host.node] = left
        return found

    def stopped_groups(self, node):
        cdef Host host = self.host_of(node)
        cdef size_t i
        return [host.flows[i].group for i in range(host.flows.size())
                if host.flows[i].hosted and host.flows[i].stopped]

    def machine(self, node, group):
        return self.host_of(node).machine[group]

    def status(self, node, u32 group):
        cdef GroupStatus status
        cdef Host host = self.host_of(node)
        if host.engine == NULL or not engine_group_status(host.engine, group, &status):
            raise KeyError((node, group))
        made = status
        return made

    def leaders(self, u32 group):
        cdef GroupStatus status
        cdef Host host
        return [host.node for host in self.hosts
                if host.engine != NULL and engine_group_status(host.engine, group, &status)
                and status.leading]

    def decided_through(self, u32 group):
        return self.watch.ref.logs[group].end

    def decided_values(self):
        return self.watch.ref.values_decided

    def counters(self):
        cdef Host host
        total = {}
        for host in self.hosts:
            if host.engine != NULL:
                host.count()
            for part in (host.engine_totals, host.counts):
                for name, value in part.items():
                    total[name] = total.get(name, 0) + value
            if host.engine != NULL:
                host.uncount()
            kept = {"checkpoints_" + name: value for name, value in host.keeping.counts.items()}
            for part in (kept, host.fetching.counts, host.trimming.counts, host.mending.counts,
                         host.comparing.counts,
                         host.hosting.counts if host.hosting else Hosting.NOTHING):
                for name, value in part.items():
                    total[name] = total.get(name, 0) + value
        total.update(self.counts)
        total["duplicates"] = self.watch.ref.duplicates
        total["values_decided"] = self.watch.ref.values_decided
        total["noops_decided"] = self.watch.ref.noops_decided
        total["late_decisions"] = self.watch.ref.late_decisions
        total.update(steps=self.agenda.steps, checks=self.watch.checks,
                     rejoin_asks=self.watch.rejoin_asks, written_lost=self.watch.written_lost)
        return total

    def digest(self):
        cdef Host host
        cdef u64 made = chance_mix(self.agenda.steps) + self.agenda.now_us
        for host in self.hosts:
            made = chance_mix(made ^ host.digest)
        return made

    def trace(self):
        from phx.sim.transcript import lines

        return lines(self.events or ())

    def memory(self):
        cdef Host host
        cdef u64 engines = 0, queued = 0
        cdef size_t i
        for host in self.hosts:
            if host.engine != NULL:
                engines = max(engines, host.engine.cached_bytes + host.engine.pending_bytes)
        for i in range(self.links.size()):
            queued = max(queued, self.links[i].queued_bytes)
        return {"blocks": phx_blocks_live(), "engine_bytes": engines, "link_bytes": queued}
