# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Python's door to the peers of a driver; what it guarantees stands in peer_table.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcpy, memset

from phx._core.driver cimport Driver
from phx._core.driver_state cimport PeerWanted
from phx._core.lookups cimport Lookup, lookups_take
from phx._core.native cimport *
from phx._core.options cimport address_of
from phx._core.peers cimport PEER_CANNOT, PEER_GRANTED, PEER_MEMBER, PEER_UNKEPT
from phx._core.port cimport PhxAddress
from phx._core.queues cimport (
    ASK_ADD_PEER, ASK_DROP_PEER, ASK_MOVE_PEER, COMMAND_ADDRESS, Command, Question,
)
from phx._core.transport cimport PEER_LOOKED_UP, PEER_NAMED, PEERS_MAX

from phx._core import driver as errors
from phx._core.options import DriverError


cdef class PeerTable:
    cdef Driver driver

    def __init__(self, Driver driver not None):
        self.driver = driver

    cdef int ask(self, u8 kind, u32 node, PeerWanted* wanted) except *:
        cdef Question question
        question.kind = kind
        question.peer = node
        question.status = wanted
        self.driver.ask(&question)
        return question.verdict

    def add(self, u32 node, host, port, *, bint named=False, store_id=None):
        cdef PeerWanted wanted
        memset(&wanted, 0, sizeof(wanted))
        numeric(&wanted.address, host, port)
        wanted.how = PEER_NAMED if named else 0
        if store_id is not None:
            known_store(&wanted, store_id)
        if self.ask(ASK_ADD_PEER, node, &wanted) != 0:
            raise DriverError(errors.ERROR_OPTION, f"node {node} cannot be a peer: that is no id "
                              f"of another node, or {PEERS_MAX} are there already")

    def drop(self, u32 node, kept=None):
        cdef PeerWanted wanted
        cdef int verdict
        memset(&wanted, 0, sizeof(wanted))
        cdef PeerWanted* told = NULL
        if kept is not None:
            told = &wanted
        if kept:
            known_store(told, kept)
        verdict = self.ask(ASK_DROP_PEER, node, told)
        if verdict == PEER_UNKEPT:
            return False
        if verdict == PEER_MEMBER:
            raise DriverError(errors.ERROR_MEMBER, f"node {node} is a member of a group here")
        if verdict == PEER_GRANTED:
            raise DriverError(errors.ERROR_GRANTED,
                              f"node {node} may lead under a grant of this one: try again")
        if verdict == PEER_CANNOT:
            raise DriverError(errors.ERROR_OPTION, f"node {node} is this node itself")
        return True

    def set_address(self, u32 node, host, port, *, bint named=False):
        cdef PeerWanted wanted
        memset(&wanted, 0, sizeof(wanted))
        numeric(&wanted.address, host, port)
        wanted.how = PEER_NAMED if named else 0
        if self.ask(ASK_MOVE_PEER, node, &wanted) != 0:
            raise DriverError(errors.ERROR_OPTION, f"node {node} is no peer of this one")

    def resolved(self, u32 node, host, port):
        cdef Command command
        cdef PhxAddress address
        numeric(&address, host, port)
        memset(&command, 0, sizeof(Command))
        command.kind = COMMAND_ADDRESS
        command.peer = node
        command.first = PEER_LOOKED_UP
        command.block = block_copy(&address, sizeof(PhxAddress))
        self.driver.command(&command, True)

    def lookups(self, u64 timeout_us):
        cdef vector[Lookup] found
        cdef bint more
        cdef size_t i
        if self.driver.forked:
            return None
        with nogil:
            more = lookups_take(&self.driver.s.lookups, timeout_us, &found)
        if not more:
            return None
        return [(found[i].node, found[i].attempts) for i in range(found.size())]


cdef int known_store(PeerWanted* out, bytes store_id) except -1:
    if len(store_id) != 16:
        raise DriverError(errors.ERROR_OPTION, "a store id has 16 bytes")
    out.known = True
    memcpy(out.store_id, PyBytes_AS_STRING(store_id), 16)
    return 0


# Port 0 and an empty host alike: not known.
cdef int numeric(PhxAddress* out, host, port) except -1:
    address_of(out, host, port)
    if port == 0:
        out.bytes = 0
    return 0
