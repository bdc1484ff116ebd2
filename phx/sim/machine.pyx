# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=True
"""The state machine of the simulator's own workload: registers and lists, compactly encoded.

    command             bytes                                              result
    ------------------  -------------------------------------------------  -----------------------
    get key             "g", key (4)                                       the value or None
    put key value       "p", key (4), value                                None
    append key more     "a", key (4), more                                 the new value
    cas key old new     "c", key (4), bytes of old (4; all ones: None),    was the value `old`?
                        old, new
    delete key          "d", key (4)                                       was it there?

Numbers are little-endian. `digest` is of the whole history and of the state, so that two machines
which applied another order differ even when they ended in the same state.
"""

from functools import partial

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.ref cimport PyObject
from libc.string cimport memcpy

from phx._core.codec cimport phx_crc32c
from phx._core.entries cimport Entry
from phx._core.native cimport i64, u32, u8, vector

from phx.errors import Damaged
from phx.machine import CopyView, StateMachine

cdef extern from "<algorithm>" namespace "std" nogil:
    void sort(Register* first, Register* end,
              bint (*lower)(const Register&, const Register&) noexcept nogil)

NONE = 0xFFFFFFFF
cdef u32 NONE_BYTES = NONE
FAIL_NEXT = 0
FAIL_HALFWAY = 1


class MachineSpoilt(Exception):
    """A plan says that this machine fails now."""


cdef bytes command_of(char what, u32 key, Py_ssize_t more):
    cdef bytes made = PyBytes_FromStringAndSize(NULL, 5 + more)
    PyBytes_AS_STRING(made)[0] = what
    memcpy(PyBytes_AS_STRING(made) + 1, &key, 4)
    return made


cdef bytes with_value(char what, u32 key, bytes value):
    cdef bytes made = command_of(what, key, PyBytes_GET_SIZE(value))
    memcpy(PyBytes_AS_STRING(made) + 5, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return made


cpdef bytes encode_get(u32 key):
    return command_of(b"g", key, 0)


cpdef bytes encode_put(u32 key, bytes value):
    return with_value(b"p", key, value)


cpdef bytes encode_append(u32 key, bytes more):
    return with_value(b"a", key, more)


cpdef bytes encode_cas(u32 key, bytes expected, bytes new):
    size = NONE if expected is None else len(expected)
    return with_value(b"c", key, (<bytes>size.to_bytes(4, "little")) + (expected or b"") + new)


cpdef bytes encode_delete(u32 key):
    return command_of(b"d", key, 0)


cdef bytes cut(bytes command, Py_ssize_t start, Py_ssize_t stop):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(command) + start, stop - start)


cdef bint swap(dict items, key, bytes command) except -1:
    cdef Py_ssize_t end = PyBytes_GET_SIZE(command)
    cdef Py_ssize_t middle = 9
    cdef u32 count
    if end < 9:
        raise ValueError("no command")
    memcpy(&count, PyBytes_AS_STRING(command) + 5, 4)
    expected = None
    if count != NONE_BYTES:
        middle = min(9 + <Py_ssize_t>count, end)
        expected = cut(command, 9, middle)
    if items.get(key) != expected:
        return False
    items[key] = cut(command, middle, end)
    return True


cdef extern from "<algorithm>" namespace "std" nogil:
    void sort[Place, Order](Place first, Place last, Order order)


cdef struct Register:
    u32 key
    PyObject* value                # bytes, a reference of the dictionary's


cdef bint lower(const Register& one, const Register& other) noexcept nogil:
    return one.key < other.key


# By ascending keys; good until the dictionary changes.
cdef int in_order(dict items, vector[Register]* found) except -1:
    cdef Register one
    cdef PyObject* key
    cdef Py_ssize_t at = 0
    found.reserve(len(items))
    while PyDict_Next(items, &at, &key, &one.value):
        one.key = <u32><object>key
        found.push_back(one)
    sort(found.data(), found.data() + found.size(), lower)
    return 0


# The number in decimal and a colon, at the end of `text`; where it begins.
cdef Py_ssize_t label(u32 number, char[16] text) noexcept nogil:
    cdef Py_ssize_t at = 15
    text[at] = b":"
    while True:
        at -= 1
        text[at] = <char>(48 + number % 10)
        number //= 10
        if number == 0:
            return at


# All nodes apply the same keys: one object for each, which a dictionary knows at a glance.
cdef enum:
    KEYS = 1024
cdef u32[KEYS] key_numbers
cdef list key_objects = [0] * KEYS


cdef inline object key_object(u32 number):
    cdef size_t at = (number ^ number >> 4 ^ number >> 14) & (KEYS - 1)
    if key_numbers[at] != number:
        key_numbers[at] = number
        key_objects[at] = number
    return key_objects[at]


class SimMachine(StateMachine):
    """A replica of one group's registers. `items` is its state, `spoilt` makes it fail."""

    __slots__ = ("chain", "items", "spoilt")

    digest_cheap = True

    def __init__(self) -> None:
        self.items: dict[int, bytes] = {}
        self.chain = 0
        self.spoilt: int | None = None

    def spoil(self, how: int) -> None:
        """Raise at the next entry (FAIL_NEXT) or in the middle of the next batch (FAIL_HALFWAY).

        Any other number: not any more.
        """
        self.spoilt = how if how in (FAIL_NEXT, FAIL_HALFWAY) else None

    def stray(self, how):
        """It is wrong from now on: a value is another one, or gone, or there is one too many; and
        what it knows of its history is not what the others know."""
        found = sorted(self.items)
        if found and how % 3:
            key = found[how // 3 % len(found)]
            value = self.items[key]
            self.items[key] = value[:max(len(value), 1) - 1] + b"?"
            if how % 3 == 2:
                del self.items[key]
        else:
            self.items[how & 0x7FFFFFFF] = b"?"
        self.chain ^= 1 + (how & 0xFFFF)

    def apply(self, entry):
        return self.apply_batch([entry])[0]

    def apply_batch(self, entries):
        if self.spoilt is not None:
            half = len(entries) // 2 if self.spoilt == FAIL_HALFWAY else 0
            self._run(entries[:half])
            raise MachineSpoilt("as planned")
        return self._run(entries)

    def _run(self, list entries):
        cdef dict items = self.items
        cdef u32 chain = self.chain
        cdef list results = []
        cdef Entry entry
        cdef bytes command
        cdef const u8* data
        cdef u32 number
        cdef object key
        for entry in entries:
            command = entry.value
            data = <const u8*>PyBytes_AS_STRING(command)
            if PyBytes_GET_SIZE(command) < 5:
                raise ValueError("no command")
            chain = phx_crc32c(chain, data, PyBytes_GET_SIZE(command))
            memcpy(&number, data + 1, 4)
            key = key_object(number)
            if data[0] == b"p":
                items[key] = cut(command, 5, PyBytes_GET_SIZE(command))
                results.append(None)
            elif data[0] == b"g":
                results.append(items.get(key))
            elif data[0] == b"a":
                made = <bytes>items.get(key, b"") + cut(command, 5, PyBytes_GET_SIZE(command))
                items[key] = made
                results.append(made)
            elif data[0] == b"c":
                results.append(swap(items, key, command))
            else:
                results.append(items.pop(key, None) is not None)
        self.chain = chain
        return results

    def query(self, query):
        return self.items.get(query)

    def digest(self) -> bytes:
        cdef vector[Register] found
        cdef u32 state = 0
        cdef char[16] text
        cdef bytes value
        cdef Py_ssize_t start
        cdef size_t i
        in_order(self.items, &found)
        for i in range(found.size()):
            start = label(found[i].key, text)
            value = <bytes>found[i].value
            state = phx_crc32c(state, text + start, 16 - start)
            state = phx_crc32c(state, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        return b"%08x%08x" % (self.chain, state)

    def freeze(self) -> CopyView:
        frozen = SimMachine()
        frozen.items = self.items.copy()
        frozen.chain = self.chain
        return CopyView(frozen)

    def snapshot(self, writer) -> None:
        cdef vector[Register] found
        cdef u32 head[2]                 # key, bytes of the value
        cdef u32 chain = self.chain
        cdef Py_ssize_t size = 4
        cdef size_t i
        cdef bytes made
        cdef char* at
        in_order(self.items, &found)
        for i in range(found.size()):
            size += 8 + PyBytes_GET_SIZE(<bytes>found[i].value)
        made = PyBytes_FromStringAndSize(NULL, size)
        at = PyBytes_AS_STRING(made)
        memcpy(at, &chain, 4)
        at += 4
        for i in range(found.size()):
            head[0] = found[i].key
            head[1] = <u32>PyBytes_GET_SIZE(<bytes>found[i].value)
            memcpy(at, head, 8)
            memcpy(at + 8, PyBytes_AS_STRING(<bytes>found[i].value), head[1])
            at += 8 + head[1]
        writer.write(made)

    def restore(self, reader) -> None:
        """Raises Damaged for what no snapshot can be."""
        cdef bytes data = b"".join(iter(partial(reader.read, 1048576), b""))
        cdef const u8* at = <const u8*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t left = len(data) - 4
        cdef i64 last = -1
        cdef u32 head[2]                 # key, bytes of the value
        items = {}
        at += 4
        while left >= 8:
            memcpy(head, at, 8)
            if head[0] <= last or left - 8 < head[1]:
                break
            items[head[0]] = PyBytes_FromStringAndSize(<const char*>at + 8, head[1])
            last = head[0]
            at += 8 + head[1]
            left -= 8 + head[1]
        if left:
            raise Damaged("a snapshot of registers ends early, or is out of order")
        self.items, self.chain = items, int.from_bytes(data[:4], "little")
