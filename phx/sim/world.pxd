"""A simulated cluster: hosts, links between them, one agenda. Python comes in through World."""

from phx._core.native cimport *
from phx.sim.agenda cimport Agenda, Happening
from phx.sim.chance cimport Chance
from phx.sim.host cimport Held, Host
from phx.sim.invariants cimport Watch

cdef struct Link:                # from one host to another
    Chance chance
    bint blocked                 # swallows everything, silently
    bint apart                   # and cannot connect: both ends know
    bint dialing                 # of the pair: somebody tries to connect
    u64 heard_us                 # when something last arrived
    u64 free_us                  # the last frame arrives then: frames keep their order
    u64 delay_us_min
    u64 delay_us_max
    u64 loss_ppm
    u64 twice_ppm
    u64 late_ppm                 # of frames, that others may overtake
    u64 late_us
    u64 flip_ppm                 # of frames, that arrive with one bit flipped
    u64 bytes_per_ms             # 0: no limit
    u64 queued_bytes             # sent and not arrived
    u64 queue_bytes_max          # beyond, frames are dropped

cdef struct WorldCounts:
    u64 frames
    u64 lost_frames
    u64 copied_frames
    u64 late_frames
    u64 flipped_frames
    u64 dropped_frames           # the queue of the link was full, or its connection gone
    u64 bad_frames               # refused on arrival: checksum
    u64 connections
    u64 half_open                # connections that only one end believed in
    u64 crashes
    u64 power_losses
    u64 torn_operations          # crashes inside a write or a sync
    u64 torn_checkpoints         # crashes inside a step of a checkpoint
    u64 deaths_at_start          # of both: while the node was being opened

cdef class World:
    cdef Agenda agenda
    cdef list hosts
    cdef list groups
    cdef public bint tracing
    cdef Watch* watch
    cdef vector[Link] links
    cdef u32 n
    cdef u64 cluster
    cdef u64 connection
    cdef WorldCounts counts
    cdef dict calls
    cdef u64 call_number
    cdef u64 checked_steps
    cdef object events           # the last ones, if tracing
    cdef set damaged_nodes       # whose disk was damaged on purpose
    cdef dict power_next         # host index -> how it dies when its disk stops
    cdef object net              # pipes.Net
    cdef object oddness          # oddness.Oddness
    cdef dict asked_members          # by group: (version, voters), that a node has taken; or None
    cdef readonly object directory   # directory.Directory; None: no groups are created

    cdef int dispatch(self, Happening* what) except -1
    cdef int host_event(self, Host host, Happening* what) except -1
    cdef int serve(self, Host host) except -1
    cdef void count_torn(self, Host host)
    cdef bint bring_up(self, Host host) except -1
    cdef void bring_down(self, Host host, bint power)
    cdef void check_failed(self)
    cdef Host host_of(self, node)

cdef inline Link* link_of(World w, u32 source, u32 dest) noexcept:
    return &w.links[source * w.n + dest]
