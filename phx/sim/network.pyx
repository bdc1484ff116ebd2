# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Frames and connections between hosts; see network.pxd."""

from phx._core.codec cimport FRAME_HEADER_BYTES, FRAME_OK, FrameHeader, frame_check
from phx._core.engine cimport (
    engine_advance, engine_connected, engine_disconnected, engine_receive,
)
from phx._core.native cimport *
from phx.sim.agenda cimport AT_ARRIVE, AT_DIAL, AT_RESET, AT_SILENCE, Happening
from phx.sim.chance cimport chance_below, chance_between, chance_ppm
from phx.sim.host cimport Held, Host
from phx.sim.invariants cimport watch_fail
from phx.sim.equip cimport CLUSTER
from phx.sim.world cimport Link, World, link_of

from phx.sim.pipes import WIRE_CUT, WIRE_FLIPPED, WIRE_STILL

cdef u64 SILENCE_US = 3000000
cdef i64 SENT_AGAIN_US = 200000

cdef void link_set(Link* link, dict values):
    link.delay_us_min = values["delay_us_min"]
    link.delay_us_max = values["delay_us_max"]
    link.loss_ppm = values["loss_ppm"]
    link.twice_ppm = values["twice_ppm"]
    link.late_ppm = values["late_ppm"]
    link.late_us = values["late_us"]
    link.flip_ppm = values["flip_ppm"]
    link.bytes_per_ms = values["bytes_per_ms"]
    link.blocked = values["blocked"]


cdef int transmit(World w, Host sender, Held* item, u32 dest) except -1:
    cdef Link* link = link_of(w, sender.index, dest)
    cdef u64 now = w.agenda.now_us
    cdef u64 connection = item.connections[dest]
    cdef u64 at
    cdef Block* block = item.frame
    if connection == 0 or sender.connections[dest] != connection:
        w.counts.dropped_frames += 1
        return 0
    w.counts.frames += 1
    if w.tracing:
        w.events.append((now, "send", sender.node, dest + 1, item.after,
                            (<char*>block.data)[:block.size]))
    if link.blocked or chance_ppm(&link.chance, link.loss_ppm):
        w.counts.lost_frames += 1
        return 0
    if link.queued_bytes + block.size > link.queue_bytes_max:
        w.counts.dropped_frames += 1
        return 0
    at = now + chance_between(&link.chance, link.delay_us_min, link.delay_us_max)
    if chance_ppm(&link.chance, link.late_ppm):
        w.counts.late_frames += 1
        at += chance_below(&link.chance, link.late_us)
    else:
        if link.bytes_per_ms:
            at = max(at, link.free_us) + block.size * 1000 // link.bytes_per_ms
        at = max(at, link.free_us)
        link.free_us = at
    if chance_ppm(&link.chance, link.flip_ppm):
        w.counts.flipped_frames += 1
        block = block_copy(block.data, block.size)
        block.data[chance_below(&link.chance, block.size)] ^= \
            <u8>(1 << chance_below(&link.chance, 8))
    else:
        block_ref(block)
    link.queued_bytes += block.size
    w.agenda.push(at, AT_ARRIVE, dest, 0, sender.index * w.n + dest, connection, block)
    if chance_ppm(&link.chance, link.twice_ppm):
        w.counts.copied_frames += 1
        link.queued_bytes += block.size
        w.agenda.push(at + chance_below(&link.chance, link.late_us), AT_ARRIVE, dest, 0,
                         sender.index * w.n + dest, connection, block_ref(block))
    return 0


cdef i64 wire_us(World w, Host source, Host dest, u64 nbytes):
    cdef Link* link = link_of(w, source.index, dest.index)
    cdef i64 took
    if link.apart or source.engine == NULL or dest.engine == NULL:
        return WIRE_CUT
    if link.blocked:
        return WIRE_STILL
    took = <i64>chance_between(&link.chance, link.delay_us_min, link.delay_us_max)
    while chance_ppm(&link.chance, link.loss_ppm):
        took += SENT_AGAIN_US
    if link.bytes_per_ms:
        took += <i64>(nbytes * 1000 // link.bytes_per_ms)
    return took + WIRE_FLIPPED if chance_ppm(&link.chance, link.flip_ppm) else took


cdef int arrive(World w, Happening* what) except -1:
    cdef Host host = <Host>(<list>w.hosts)[what.host]
    cdef u32 source = <u32>(what.a // w.n)
    cdef Link* link = &w.links[what.a]
    cdef const FrameHeader* header
    link.queued_bytes -= what.block.size
    if host.engine == NULL or host.connections[source] != what.b:
        block_unref(what.block)
        return 0
    link.heard_us = w.agenda.now_us
    if frame_check(what.block.data, what.block.size, host.engine_options.frame_bytes_max * 4
                   + (1 << 22), CLUSTER, host.node, source + 1) != FRAME_OK:
        w.counts.bad_frames += 1
        hang_up(w, host, source, True)
    else:
        header = <const FrameHeader*>what.block.data
        host.note(header.crc ^ (<u64>source << 40))
        # As the poll thread does: what arrives is judged at the time of its arrival.
        engine_advance(host.engine, host.shows(), host.wall())
        engine_receive(host.engine, source + 1, what.block.data + FRAME_HEADER_BYTES,
                       what.block.size - FRAME_HEADER_BYTES)
        host.poke()
        # A turn takes no more than a part of a segment from its peers.
        host.heard_bytes += what.block.size
        if host.heard_bytes > host.journal_options.segment_bytes // 4:
            host.turn()
    block_unref(what.block)
    return 0


cdef void dial_soon(World w, u32 a, u32 b, u64 after_us):
    cdef u32 low = min(a, b)
    cdef u32 high = max(a, b)
    cdef Link* link = link_of(w, low, high)
    if not link.dialing:
        link.dialing = True
        w.agenda.push(w.agenda.now_us + after_us, AT_DIAL, 0, 0, low * w.n + high, 0,
                         NULL)


cdef void dial(World w, u32 a, u32 b):
    cdef Host one = <Host>(<list>w.hosts)[a]
    cdef Host other = <Host>(<list>w.hosts)[b]
    cdef Link* there = link_of(w, a, b)
    cdef Link* back = link_of(w, b, a)
    cdef u64 now = w.agenda.now_us
    if one.engine == NULL or other.engine == NULL:
        return                    # whoever comes up dials
    if one.connections[b] != 0 and one.connections[b] == other.connections[a]:
        return
    if there.apart or there.blocked or back.blocked or now < one.paused_until_us \
            or now < other.paused_until_us:
        dial_soon(w, a, b, chance_between(&there.chance, 20000, 300000))
        return
    connect(w, one, other)


# A new connection of a pair; what either end still had is over.

cdef void connect(World w, Host a, Host b):
    cdef u64 now = w.agenda.now_us
    cdef u32 i = a.index
    cdef u32 j = b.index
    if a.connections[j] or b.connections[i]:
        w.counts.half_open += 1
    hang_up(w, a, j, False)
    hang_up(w, b, i, False)
    w.connection += 1
    w.counts.connections += 1
    a.connections[j] = b.connections[i] = w.connection
    if engine_connected(a.engine, b.node, b.incarnation, b.journal_options.store_id) != 0 or \
            engine_connected(b.engine, a.node, a.incarnation, a.journal_options.store_id) != 0:
        watch_fail(w.watch, b"U6", b"a peer is refused that is what it was")
    link_of(w, i, j).heard_us = link_of(w, j, i).heard_us = now
    link_of(w, i, j).free_us = link_of(w, j, i).free_us = now
    w.agenda.push(now + SILENCE_US, AT_SILENCE, j, 0, i * w.n + j, w.connection, NULL)
    w.agenda.push(now + SILENCE_US, AT_SILENCE, i, 0, j * w.n + i, w.connection, NULL)
    a.poke()
    b.poke()


# The host's end of a connection is closed; `told`: the other end hears of it, if it can.

cdef void hang_up(World w, Host host, u32 peer, bint told):
    cdef Link* link = link_of(w, host.index, peer)
    cdef u64 connection = host.connections[peer]
    if connection == 0:
        return
    host.connections[peer] = 0
    if host.engine != NULL:
        engine_disconnected(host.engine, peer + 1)
        host.poke()
    if told and not link.blocked:
        w.agenda.push(w.agenda.now_us + link.delay_us_max, AT_RESET, peer, 0,
                         host.index * w.n + peer, connection, NULL)
    dial_soon(w, host.index, peer, chance_between(&link.chance, 1000, 100000))


# A connection on which nothing was heard for long is closed.

cdef void silence(World w, Happening* what):
    cdef Host host = <Host>(<list>w.hosts)[what.host]
    cdef Link* link = &w.links[what.a]
    if host.engine == NULL or host.connections[what.a // w.n] != what.b:
        return
    if w.agenda.now_us >= link.heard_us + SILENCE_US:
        hang_up(w, host, <u32>(what.a // w.n), True)
    else:
        w.agenda.push(link.heard_us + SILENCE_US, AT_SILENCE, what.host, 0, what.a, what.b,
                         NULL)
