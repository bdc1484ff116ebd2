# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Runs targets; see loop.pxd.

Two ways. `guided` hands over to libFuzzer, which sees what is covered. `plain` mutates inputs of
the corpus from a seed, needs no compiler but the usual one, and says the same for the same seed.
Either way each run is one call of a target, and afterwards nothing may be left allocated.
"""

from libc.stdlib cimport malloc

from phx._core.native cimport *
from phxfuzz.engines cimport run_engine, run_replay
from phxfuzz.journals cimport free_journals, make_journals, run_journal
from phxfuzz.plain cimport run_body, run_chunk, run_frame, run_record, run_table
from phxfuzz.script cimport *

cdef extern from *:
    """
    #ifdef PHX_FUZZ_GUIDED
    extern "C" int LLVMFuzzerRunDriver(int *argc, char ***argv,
                                       int (*one)(const uint8_t *data, size_t size));
    static const int phx_fuzz_guided = 1;
    #else
    static int LLVMFuzzerRunDriver(int *, char ***, int (*)(const uint8_t *, size_t)) { return 2; }
    static const int phx_fuzz_guided = 0;
    #endif
    """
    int LLVMFuzzerRunDriver(int* argc, char*** argv, int (*one)(const u8*, size_t) noexcept nogil)
    int phx_fuzz_guided

cdef enum:
    BYTES_MAX = 4096
    MUTATIONS_MAX = 6

NAMES = ("frame", "record", "body", "table", "chunk", "journal", "engine", "replay")
GUIDED = bool(phx_fuzz_guided)

cdef Target targets[8]
targets[:] = [run_frame, run_record, run_body, run_table, run_chunk, run_journal, run_engine,
              run_replay]
cdef Target chosen = NULL
cdef i64 live_before = 0


cdef int one(const u8* data, size_t count) noexcept nogil:
    chosen(data, count)
    demand(phx_blocks_live() + phx_others_live() == live_before,
           b"a run did not give back all that it allocated")
    return 0


def choose(str name not None):
    """The target that runs from now on."""
    global chosen, live_before
    chosen = targets[NAMES.index(name)]
    if name == "journal" and make_journals() != 0:
        raise RuntimeError("the journals to be tampered with cannot be written")
    live_before = phx_blocks_live() + phx_others_live()


def finish():
    """Gives back what `choose` has made; what is still allocated then."""
    free_journals()
    return phx_blocks_live() + phx_others_live()


def run(bytes data not None):
    """One input."""
    cdef u8* copied = exact(<const char*>data, len(data))
    cdef size_t count = len(data)
    with nogil:
        one(copied, count)
        free(copied)


def guided(list arguments not None):
    """libFuzzer, with its arguments. It ends the process."""
    cdef int argc = len(arguments)
    cdef char** argv = <char**>malloc((argc + 1) * sizeof(char*))
    for i, argument in enumerate(arguments):
        argv[i] = <char*>(<bytes>argument)
    argv[argc] = NULL
    return LLVMFuzzerRunDriver(&argc, &argv, one)


# --- plain mutation

cdef u64 mutate(u8* data, u64 count, const u8* other, u64 other_count, u64* random) noexcept nogil:
    cdef u64 word = next_random(random)
    cdef u64 at = (word >> 8) % count if count else 0
    cdef u64 many = 1 + (word >> 32) % 16
    cdef u64 source, n
    cdef u8 way = word & 7
    if count == 0 or way == 0:           # insert
        many = min(many, <u64>BYTES_MAX - count)
        for n in range(count - at):
            data[count - 1 - n + many] = data[count - 1 - n]
        for n in range(many):
            data[at + n] = <u8>(next_random(random) >> 40)
        return count + many
    if way == 1:                         # remove
        many = min(many, count - at)
        for n in range(at + many, count):
            data[n - many] = data[n]
        return count - many
    if way == 2:                         # a stretch of another input
        if other_count == 0:
            return count
        source = (word >> 40) % other_count
        many = min(min(1 + (word >> 24) % 256, other_count - source), <u64>BYTES_MAX - at)
        memcpy(data + at, other + source, many)
        return max(count, at + many)
    if way == 3:                         # a stretch of itself, somewhere else
        source = (word >> 40) % count
        for n in range(min(many * 4, count - max(at, source))):
            data[at + n] = data[source + n]
    elif way == 4:
        data[at] ^= <u8>(1 << (word >> 29 & 7))
    elif way == 5:
        data[at] = <u8>(data[at] + (word >> 29 & 15) - 8)
    elif way == 6:                       # an extreme value
        for n in range(min(<u64>1 << (word >> 29 & 3), count - at)):
            data[at + n] = 0xFF if word >> 35 & 1 else 0
    else:
        data[at] = <u8>(word >> 29)
    return count


def plain(list corpus not None, u64 seed, u64 executions, current not None):
    """`executions` inputs made from those of `corpus`. The input of each run stands in `current`,
    a writable buffer that outlives the process: its length (u64) and its bytes."""
    cdef u8[::1] shared = current
    cdef u8* note = &shared[0]
    cdef u8 data[BYTES_MAX + 32]
    cdef vector[Block*] inputs
    cdef Block* base
    cdef Block* other
    cdef u64 random = seed * <u64>0x9E3779B97F4A7C15 + 1
    cdef u64 done, count, changes, word
    if shared.shape[0] < BYTES_MAX + 32 or not corpus:
        raise ValueError("no corpus, or too little room for the input")
    for data_ in corpus:
        inputs.push_back(block_copy(<const char*>(<bytes>data_), min(len(data_), BYTES_MAX)))
    global live_before
    live_before = phx_blocks_live() + phx_others_live()
    with nogil:
        for done in range(executions):
            word = next_random(&random)
            base = inputs[<size_t>(word % inputs.size())]
            other = inputs[<size_t>((word >> 20) % inputs.size())]
            count = base.size
            memcpy(data, base.data, count)
            for changes in range(1 + (word >> 50) % MUTATIONS_MAX):
                count = mutate(data, count, other.data, other.size, &random)
            memcpy(note, &count, 8)
            memcpy(note + 8, data, count)
            one(note + 8, count)
        for done in range(inputs.size()):
            block_unref(inputs[done])
    count = 0
    memcpy(note, &count, 8)
    return executions
