"""Words, blocks and containers that every native module uses.

The containers are declared without ``except +``: with it, Cython would turn each call inside a
``noexcept nogil`` function into a catch-all that takes the GIL. Out of memory aborts instead.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint8_t u8
ctypedef uint16_t u16
ctypedef uint32_t u32
ctypedef uint64_t u64
ctypedef int64_t i64

cdef extern from * nogil:
    # Asks for memory that will be looked at soon; any address will do.
    void prefetch "__builtin_prefetch" (const void* at)

cdef extern from "native.h" nogil:
    ctypedef struct Block:
        i64 refs
        u64 size
        u64 capacity
        u8* data

    i64 phx_blocks_live()
    i64 phx_others_live()
    void* phx_malloc(size_t size)
    void* phx_calloc(size_t count, size_t size)
    void* phx_realloc(void* had, size_t size)
    void phx_free(void* made)
    void phx_fatal(const char* what)
    Block* block_new(u64 capacity)
    Block* block_ref(Block* b)
    void block_unref(Block* b)
    Block* block_reserve(Block* b, u64 extra)
    Block* block_append(Block* b, const void* data, u64 count)
    Block* block_pad8(Block* b)
    Block* block_copy(const void* data, u64 count)
    T* phx_new[T]()
    void phx_delete[T](T* made)
    void phx_renew[T](T* at)
    i64 phx_load(const i64* p)
    void phx_store(i64* p, i64 v)
    i64 phx_add(i64* p, i64 v)
    i64 phx_exchange(i64* p, i64 v)

cdef extern from "<vector>" namespace "std" nogil:
    cdef cppclass vector[T]:
        vector()
        T& operator[](size_t)
        T& back()
        T& front()
        T* data()
        size_t size()
        size_t capacity()
        bint empty()
        void push_back(T&)
        void pop_back()
        void clear()
        void resize(size_t)
        void reserve(size_t)
        void swap(vector[T]&)

cdef extern from "<deque>" namespace "std" nogil:
    cdef cppclass deque[T]:
        deque()
        T& operator[](size_t)
        T& back()
        T& front()
        size_t size()
        bint empty()
        void push_back(T&)
        void push_front(T&)
        void pop_back()
        void pop_front()
        void clear()
        void swap(deque[T]&)
