# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""See asking.pxd and asking.pyi."""

from phx._core.engine cimport engine_read
from phx._core.native cimport *
from phx._core.reads cimport READ_QUORUM
from phx._core.state cimport VERDICT_STOPPED_REJECTED, VERDICT_TIMED_OUT_REJECTED, Effects
from phx.sim.host cimport Host, LogFlow, find_flow
from phx.sim.watch_odd cimport watch_answers
from phx.sim.watch_reads cimport known_through, watch_asked_point
from phx.sim.world cimport World


cdef class _Reading:
    cdef u32 group
    cdef u64 known               # U14: the point is at least this
    cdef u64 point
    cdef u64 until_us            # by the host's clock
    cdef bint quorum
    cdef object call


def read(World world, node, u32 group, bint quorum, u64 timeout_us, call):
    cdef Host h = <Host>(<list>world.hosts)[<size_t>node - 1]
    cdef _Reading one = _Reading()
    cdef int verdict
    one.group = group
    one.quorum = quorum
    one.call = call
    one.until_us = h.shows() + timeout_us
    one.known = known_through(h.watch, group)
    h.tickets += 1
    verdict = engine_read(h.engine, group, h.tickets, READ_QUORUM if quorum else 0, one.until_us)
    if verdict == 0:
        h.asking[h.tickets] = one
        h.poke()
    return verdict


cdef void reads_begin(Host h):
    h.asking = {}
    h.answering = []
    h.changed = []


cdef void reads_end(Host h):
    left = [*(h.asking or {}).values(), *(h.answering or [])]
    reads_begin(h)
    for one in left:
        (<_Reading>one).call.died(h.agenda.now_us)


cdef void take_points(Host h, Effects* out):
    cdef size_t i
    cdef _Reading one
    for i in range(out.points.size()):
        one = <_Reading>h.asking.pop(out.points[i].ticket)
        h.note(out.points[i].instance ^ out.points[i].ticket << 40)
        if out.points[i].verdict:
            one.call.failed(h.agenda.now_us, out.points[i].verdict)
            continue
        one.point = out.points[i].instance
        # (Where members change it may be asked again yet.)
        if not one.quorum or not h.first_members:
            watch_asked_point(h.watch, h.node, one.group, one.known, one.point, one.quorum)
        h.answering.append(one)


# The members before said what they knew. What those after have chosen, they need not have accepted:
# a point that is not below the value by which they changed is asked for again.
cdef void ask_again(Host h):
    cdef _Reading one
    cdef list left = []
    cdef int verdict
    changed, h.changed = h.changed, []
    for one in h.answering:
        if not one.quorum or not any(one.group == group and one.point >= instance
                                     for group, instance in changed):
            left.append(one)
            continue
        h.tickets += 1
        verdict = engine_read(h.engine, one.group, h.tickets, READ_QUORUM, one.until_us)
        if verdict:
            one.call.failed(h.agenda.now_us, verdict)
        else:
            h.asking[h.tickets] = one
            h.poke()
    h.answering = left


# True: it is over.
cdef bint answer_now(Host h, _Reading one):
    cdef LogFlow* flow = find_flow(h, one.group)
    if flow == NULL or flow.stopped:  # (a group that is deleted was dropped meanwhile)
        one.call.failed(h.agenda.now_us, VERDICT_STOPPED_REJECTED)
    elif flow.applied >= one.point and not flow.paused:
        if watch_answers(h.watch, h.node, one.group):
            one.call.lost(h.agenda.now_us)
            return True
        if one.quorum and h.first_members:
            watch_asked_point(h.watch, h.node, one.group, one.known, one.point, True)
        one.call.done(h.agenda.now_us, h.machine[one.group].items.get(one.call.key))
    elif h.shows() >= one.until_us:
        one.call.failed(h.agenda.now_us, VERDICT_TIMED_OUT_REJECTED)
    else:
        return False
    return True


cdef int reads_turn(Host h, Effects* out) except -1:
    if not out.points.empty():
        take_points(h, out)
    if h.changed:
        ask_again(h)
    if h.answering:
        h.answering = [one for one in h.answering if not answer_now(h, <_Reading>one)]
    return 0
