# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What a host is made of; see equip.pxd."""

from functools import partial

from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcpy, memset

from phx._core.memdisk cimport MemoryDisk
from phx._core.native cimport *
from phx.sim.chance cimport chance_between, chance_of
from phx.sim.host cimport Host, Pace
from phx.sim.watch_members cimport watch_members

from phx.sim.keeping import Keeping
from phx.sim.relaxing import Relaxing, modes_of
from phx.sim.settings import PACE
from phx.sim.storage import SettledStore
from phx.sim.trimming import Trimming


cdef Pace pace_of(dict values):
    cdef Pace pace = values
    return pace


cdef void equip(Host host, u64 seed, u32 nodes, dict limits, machines) except *:
    cdef u32 i
    host.chance = chance_of(seed, 1000 + host.node)
    host.pace = pace_of(PACE)
    host.machines = partial(machines, host.node)
    memset(&host.engine_options, 0, sizeof(host.engine_options))
    host.engine_options.node = host.node
    host.engine_options.cluster = CLUSTER
    host.engine_options.n_members = nodes
    for i in range(nodes):
        host.engine_options.members[i] = i + 1
        host.peer_index[i + 1] = i
    host.engine_options.window = limits["window"]
    host.engine_options.window_bytes = limits["window_bytes"]
    host.engine_options.batch_bytes_max = limits["batch_bytes_max"]
    host.engine_options.heartbeat_us = limits["heartbeat_us"]
    host.engine_options.lease_us = limits["lease_us"]
    host.engine_options.election_us = limits["election_us"]
    host.engine_options.resend_us = limits["resend_us"]
    host.engine_options.pending_bytes_max = limits["pending_bytes_max"]
    host.engine_options.cache_bytes_max = limits["cache_bytes_max"]
    host.engine_options.frame_bytes_max = limits["frame_bytes_max"]
    host.engine_options.value_bytes_max = limits["value_bytes_max"]
    host.engine_options.balance = limits["balance"]
    store_id = bytes([host.node]) * 16
    memset(&host.journal_options, 0, sizeof(host.journal_options))
    host.journal_options.cluster = CLUSTER
    host.journal_options.node = host.node
    memcpy(host.journal_options.store_id, PyBytes_AS_STRING(store_id), 16)
    host.journal_options.segment_bytes = limits["segment_bytes"]
    host.journal_options.journal_bytes_max = limits["journal_bytes_max"]
    host.journal_options.body_bytes_max = \
        limits["batch_bytes_max"] + 2 * limits["value_bytes_max"] + 4096
    host.journal_options.free_segments_max = limits["free_segments_max"]
    host.disk = MemoryDisk(atom=limits["atom"], bytes_max=limits["disk_bytes_max"],
                           seed=seed + host.node)
    host.store = SettledStore(store_id)
    host.keeping = Keeping(host.node, tuple(range(1, nodes + 1)), CLUSTER,
                           limits["checkpoints_kept"], host.wrote)
    host.trimming = Trimming(host, limits["hold_instances"], seed + host.node)
    host.tasks = {}
    host.keep_every_us = limits["checkpoint_us"]
    host.keep_chance = chance_of(seed, 2000 + host.node)
    host.keep_excused = set()
    host.rejoins = limits["rejoin"] or limits["relaxed"]
    host.runs = 1
    host.boot = host.runs.to_bytes(16, "big")
    if limits["relaxed"]:
        host.relaxing = Relaxing(host, seed * 64 + host.node,
                                 modes_of(seed, host.node, host.groups, limits["relaxed"]))
    host.agreed_every = limits["agreed_every"]
    host.joining = {}
    host.first_members = limits["members"]
    host.slots = <u32>len(host.configured) + limits["created"]
    if host.first_members and host.index == 0:
        watch_members(host.watch, (<u32>1 << host.first_members) - 1)
    host.clock.rate_ppm = 1000000
    host.clock.shown_us = chance_between(&host.chance, 1, 10000000)
    host.watch.node[host.index].clock = &host.clock
