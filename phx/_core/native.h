/* What Cython cannot say: byte order, atomics, reference-counted blocks, nothrow construction.
 *
 * A Block is an owned run of bytes with a reference count. One reference is one duty to call
 * block_unref. Blocks are grown only while there is a single reference; once shared they are
 * immutable.
 *
 * Everything that native code takes is counted: Blocks by phx_blocks_live(), structs made by
 * phx_new and memory taken by phx_malloc and its kin by phx_others_live(). Tests show that both
 * come back to zero. What a C++ container holds is not counted by itself: it goes with its struct.
 * Out of memory aborts: a replica that has lost part of its state must not go on.
 */
#ifndef PHX_NATIVE_H
#define PHX_NATIVE_H

#include <new>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "phx stores and sends little-endian words and runs on little-endian machines only"
#endif

typedef struct Block {
    int64_t refs;
    uint64_t size;      /* bytes used */
    uint64_t capacity;  /* bytes allocated in data */
    uint8_t data[];     /* `capacity` bytes */
} Block;

/* One counter of each kind for the process; a test asks that they return to zero. */
inline __attribute__((visibility("default"))) int64_t phx_live_blocks_counter = 0;
inline __attribute__((visibility("default"))) int64_t phx_live_others_counter = 0;

static inline void phx_fatal(const char *what) {
    fprintf(stderr, "phx: fatal: %s\n", what);
    fflush(stderr);
    abort();
}

static inline int64_t phx_blocks_live(void) {
    return __atomic_load_n(&phx_live_blocks_counter, __ATOMIC_RELAXED);
}

static inline int64_t phx_others_live(void) {
    return __atomic_load_n(&phx_live_others_counter, __ATOMIC_RELAXED);
}

static inline void *phx_counted(void *made) {
    if (made != NULL) __atomic_add_fetch(&phx_live_others_counter, 1, __ATOMIC_RELAXED);
    return made;
}

/* As those of the C library, NULL included, but counted; only phx_free gives them back. */
static inline void *phx_malloc(size_t size) { return phx_counted(malloc(size)); }
static inline void *phx_calloc(size_t count, size_t size) {
    return phx_counted(calloc(count, size));
}
static inline void *phx_realloc(void *had, size_t size) {
    return had == NULL ? phx_malloc(size) : realloc(had, size);
}
static inline void phx_free(void *made) {
    if (made == NULL) return;
    __atomic_sub_fetch(&phx_live_others_counter, 1, __ATOMIC_RELAXED);
    free(made);
}

/* Large blocks are kept for the next that needs one: they are made and given back thousands of
 * times a second, mostly on different threads, and a C library returns such memory to the kernel,
 * which clears every page again. Four sizes to a doubling, and a third is wasted at most;
 * PHX_POOL_BYTES are kept in all. Whoever finds the pool in use goes without it: nobody waits, and
 * a fork cannot be left with a lock. What lies in the pool is not live. Sanitizers see every free.
 */
enum {
    PHX_POOL_LEAST = 1 << 16, /* bytes, Block included; twice as many six times over */
    PHX_POOL_SIZES = 24,
    PHX_POOL_BYTES = 16 << 20
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PHX_POOL 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define PHX_POOL 0
#endif
#endif
#ifndef PHX_POOL
#define PHX_POOL 1
#endif

struct PhxPool {
    char busy;
    uint64_t bytes;
    Block *first[PHX_POOL_SIZES]; /* the next one stands in its data */
};

inline __attribute__((visibility("default"))) PhxPool phx_pool = {};

/* The class whose blocks have at least `bytes`, and how many they have; -1: not from the pool. */
static inline int phx_pool_class(uint64_t bytes, uint64_t *rounded) {
    if (!PHX_POOL || bytes <= PHX_POOL_LEAST / 4 * 3) return -1;
    uint64_t size = PHX_POOL_LEAST;
    for (int at = 0; at < PHX_POOL_SIZES; at += 4, size *= 2)
        for (int quarter = 0; quarter < 4; quarter++)
            if (size + size / 4 * quarter >= bytes) {
                *rounded = size + size / 4 * quarter;
                return at + quarter;
            }
    return -1;
}

static inline Block *phx_pool_take(int which, uint64_t bytes) {
    Block *b = NULL;
    if (__atomic_test_and_set(&phx_pool.busy, __ATOMIC_ACQUIRE)) return NULL;
    b = phx_pool.first[which];
    if (b != NULL) {
        memcpy(&phx_pool.first[which], b->data, sizeof(Block *));
        phx_pool.bytes -= bytes;
    }
    __atomic_clear(&phx_pool.busy, __ATOMIC_RELEASE);
    return b;
}

static inline bool phx_pool_keep(Block *b) {
    uint64_t bytes = sizeof(Block) + b->capacity, rounded = 0;
    int which = phx_pool_class(bytes, &rounded);
    bool kept = false;
    if (which < 0 || rounded != bytes) return false;
    if (__atomic_test_and_set(&phx_pool.busy, __ATOMIC_ACQUIRE)) return false;
    if (phx_pool.bytes + bytes <= PHX_POOL_BYTES) {
        memcpy(b->data, &phx_pool.first[which], sizeof(Block *));
        phx_pool.first[which] = b;
        phx_pool.bytes += bytes;
        kept = true;
    }
    __atomic_clear(&phx_pool.busy, __ATOMIC_RELEASE);
    return kept;
}

static inline Block *block_new(uint64_t capacity) {
    if (capacity < 8) capacity = 8;
    uint64_t bytes = sizeof(Block) + capacity;
    Block *b = NULL;
    int which = phx_pool_class(bytes, &bytes);
    if (which >= 0) {
        capacity = bytes - sizeof(Block);
        b = phx_pool_take(which, bytes);
    }
    if (b == NULL) b = (Block *)malloc(bytes);
    if (b == NULL) phx_fatal("out of memory");
    b->refs = 1;
    b->size = 0;
    b->capacity = capacity;
    __atomic_add_fetch(&phx_live_blocks_counter, 1, __ATOMIC_RELAXED);
    return b;
}

static inline Block *block_ref(Block *b) {
    __atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
    return b;
}

static inline void block_unref(Block *b) {
    if (b != NULL && __atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        __atomic_sub_fetch(&phx_live_blocks_counter, 1, __ATOMIC_RELAXED);
        if (!phx_pool_keep(b)) free(b);
    }
}

/* Room for `extra` more bytes; the block may move. Only for a block with one reference. */
static inline Block *block_reserve(Block *b, uint64_t extra) {
    if (b->capacity - b->size >= extra) return b;
    uint64_t capacity = b->capacity * 2;
    if (capacity < b->size + extra) capacity = b->size + extra;
    if (b->refs != 1) phx_fatal("a shared block was to grow");
    if (PHX_POOL && sizeof(Block) + capacity > PHX_POOL_LEAST / 4 * 3) {
        Block *grown = block_new(capacity);
        memcpy(grown->data, b->data, b->size);
        grown->size = b->size;
        block_unref(b);
        return grown;
    }
    b = (Block *)realloc(b, sizeof(Block) + capacity);
    if (b == NULL) phx_fatal("out of memory");
    b->capacity = capacity;
    return b;
}

static inline Block *block_append(Block *b, const void *bytes, uint64_t count) {
    b = block_reserve(b, count);
    if (count) memcpy(b->data + b->size, bytes, count);
    b->size += count;
    return b;
}

/* Zero bytes up to the next multiple of eight. */
static inline Block *block_pad8(Block *b) {
    uint64_t pad = (8 - (b->size & 7)) & 7;
    b = block_reserve(b, 8);
    memset(b->data + b->size, 0, pad);
    b->size += pad;
    return b;
}

static inline Block *block_copy(const void *bytes, uint64_t count) {
    return block_append(block_new(count), bytes, count);
}

template <typename T> static inline T *phx_new() {
    T *made = new (std::nothrow) T();
    if (made == NULL) phx_fatal("out of memory");
    __atomic_add_fetch(&phx_live_others_counter, 1, __ATOMIC_RELAXED);
    return made;
}

template <typename T> static inline void phx_delete(T *made) {
    if (made == NULL) return;
    __atomic_sub_fetch(&phx_live_others_counter, 1, __ATOMIC_RELAXED);
    delete made;
}

/* As it was when it was made. */
template <typename T> static inline void phx_renew(T *at) {
    at->~T();
    new (at) T();
}

/* Flags shared by two threads. */
static inline int64_t phx_load(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void phx_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int64_t phx_add(int64_t *p, int64_t v) { return __atomic_add_fetch(p, v,
                              __ATOMIC_ACQ_REL); }
static inline int64_t phx_exchange(int64_t *p, int64_t v) { return __atomic_exchange_n(p, v,
                                   __ATOMIC_ACQ_REL); }

#endif
