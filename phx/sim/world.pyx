# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Links, dispatch, faults, and the door; see world.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from phx._core.batch cimport ItemHeader
from phx._core.codec cimport FRAME_HEADER_BYTES, FRAME_OK, frame_check
from phx._core.engine cimport (
    engine_advance, engine_connected, engine_counters, engine_disconnected, engine_group_status,
    engine_receive, engine_resign, engine_submit,
)
from phx._core.memdisk cimport MemoryDisk, MemoryFile
from phx._core.native cimport *
from phx._core.segment cimport SEGMENT_HEADER_BYTES, segment_name
from phx._core.state cimport EngineCounters, GroupStatus
from phx._core.wire cimport MSG_FORWARD, MSG_FORWARD_REPLY, MessageHeader, message_check
from phx.sim.agenda cimport *
from phx.sim.chance cimport *
from phx.sim.clock cimport clock_set
from phx.sim.handing cimport answer, apply
from phx.sim.host cimport HELD_ALL, Held, Host, Pace
from phx.sim.invariants cimport (
    Watch, watch_fail, watch_free, watch_full, watch_new, watch_sent, watch_submitted,
    watch_verdict,
)
from phx.sim.upkeep cimport commit, make_spare, settle_all, settled

from phx.sim.storage import SettledStore

cdef u64 FULL_CHECK_STEPS = 400
cdef u64 SILENCE_US = 3000000

VERDICTS = {
    1: "timed out, rejected", 2: "timed out, unknown", 3: "overloaded", 4: "not leader",
    5: "stopped, rejected", 6: "stopped, unknown", 7: "no quorum", 8: "poisoned, rejected",
    9: "poisoned, unknown",
}
UNKNOWN = frozenset({2, 6, 9})
