# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Python's door to the members of a driver's groups; what it guarantees: member_table.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memset

from phx._core.driver cimport Driver
from phx._core.members cimport Roster, roster_read
from phx._core.native cimport *
from phx._core.queues cimport (
    ASK_CHANGE_KNOWN, ASK_CHANGE_MEMBERS, ASK_MEMBERS, KnownMembers, MembersNote, Question,
    outbox_take_members,
)
from phx._core.state cimport MEMBERS_ACTIVE, MEMBERS_LEFT, GroupMembers

from phx._core import driver as errors
from phx._core.options import DriverError

CHANGE_UNDER_WAY = 0
CHANGE_NOT_LEADING = 1
CHANGE_CONFLICT = 2
CHANGE_BUSY = 3
CHANGE_NOT_CAUGHT_UP = 4
CHANGE_NO_SLOT = 5
CHANGE_UNSOUND = 6


cdef class MemberTable:
    cdef Driver driver

    def __init__(self, Driver driver not None):
        self.driver = driver

    cdef int unknown(self, group) except -1:
        if group not in self.driver.index_of:
            raise DriverError(errors.ERROR_UNKNOWN_GROUP, f"there is no group {group}")
        return 0

    def known(self, u32 group, u64 version, bytes roster not None, u64 instance, u64 floor,
              bint active):
        cdef KnownMembers told
        cdef Question question
        cdef Roster said
        cdef const u8* data = <const u8*>PyBytes_AS_STRING(roster)
        self.unknown(group)
        if not roster_read(&said, data, PyBytes_GET_SIZE(roster)) or said.version != version:
            raise impossible(group, version)
        told.group = group
        told.active = active
        told.version = version
        told.instance = instance
        told.floor = floor
        told.value = block_copy(data, PyBytes_GET_SIZE(roster))
        if not self.driver.started and not self.driver.forked:
            self.driver.s.known.push_back(told)
            return
        question.kind = ASK_CHANGE_KNOWN
        question.group = group
        question.status = &told
        try:
            self.driver.ask(&question)
        finally:
            block_unref(told.value)
        if question.verdict != 0:
            raise impossible(group, version)

    def change(self, u32 group, bytes roster not None):
        cdef Question question
        cdef Block* body
        self.unknown(group)
        body = block_copy(PyBytes_AS_STRING(roster), PyBytes_GET_SIZE(roster))
        question.kind = ASK_CHANGE_MEMBERS
        question.group = group
        question.body = body
        try:
            self.driver.ask(&question)
        finally:
            block_unref(body)
        return question.verdict

    def of(self, u32 group):
        cdef Question question
        cdef GroupMembers found
        self.unknown(group)
        memset(&found, 0, sizeof(found))
        question.kind = ASK_MEMBERS
        question.group = group
        question.status = &found
        self.driver.ask(&question)
        if found.value == NULL:
            return None
        return said_by(&found)

    def told(self):
        return phx_load(&self.driver.s.outbox.members_told)

    def take(self):
        cdef vector[MembersNote] taken
        cdef size_t i
        if self.driver.forked:
            return []
        outbox_take_members(&self.driver.s.outbox, &taken)
        return [(taken[i].group, *said_by(&taken[i].said)) for i in range(taken.size())]


cdef object impossible(u32 group, u64 version):
    return DriverError(errors.ERROR_START,
                       f"group {group}: its members of version {version} cannot be")


# Gives the reference back.
cdef tuple said_by(GroupMembers* said):
    roster = PyBytes_FromStringAndSize(<char*>said.value.data, said.value.size)
    block_unref(said.value)
    return (roster, said.instance, said.floor, bool(said.flags & MEMBERS_ACTIVE),
            bool(said.flags & MEMBERS_LEFT))
