"""How the bytes of an input become decisions; and what every target needs beside that.

An input is a script: each target reads its decisions from the front of it, and finds zeros where it
ends. So every input means something, and small changes of it are small changes of what is done.
"""

from libc.stdlib cimport abort, free, malloc
from libc.stdio cimport fprintf, stderr
from libc.string cimport memcpy, memset

from phx._core.native cimport *

cdef struct Script:
    const u8* at
    u64 left

cdef inline u8 take_u8(Script* s) noexcept nogil:
    if s.left == 0:
        return 0
    s.at += 1
    s.left -= 1
    return s.at[-1]

cdef inline u64 take_word(Script* s, u32 count) noexcept nogil:
    cdef u64 word = 0
    if count > s.left:
        count = <u32>s.left
    memcpy(&word, s.at, count)
    s.at += count
    s.left -= count
    return word

# Up to `count` bytes; how many there were. They stay where they are.
cdef inline u64 take_bytes(Script* s, u64 count, const u8** out) noexcept nogil:
    if count > s.left:
        count = s.left
    out[0] = s.at
    s.at += count
    s.left -= count
    return count

# A copy in memory of exactly that size: what reads past it is seen by AddressSanitizer. free() it.
cdef inline u8* exact(const void* data, u64 count) noexcept nogil:
    cdef u8* made = <u8*>malloc(count if count else 1)
    if made == NULL:
        abort()
    if count:
        memcpy(made, data, count)
    return made

# An oracle of a target: what must hold, whatever the bytes are.
cdef inline void demand(bint holds, const char* what) noexcept nogil:
    if not holds:
        fprintf(stderr, b"phx fuzz: broken: %s\n", what)
        abort()

# Of the 64-bit kind; enough for choices, and the same on every machine.
cdef inline u64 next_random(u64* state) noexcept nogil:
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return state[0] * <u64>0x2545F4914F6CDD1D
