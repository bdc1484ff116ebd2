/* The measured region of a micro-benchmark.
 *
 * callgrind is told by name to count only inside phx_micro_measured() and to write what it has
 * counted when phx_micro_counted() is called, so neither may be inlined or merged.
 */
#ifndef PHX_MICRO_MEASURE_H
#define PHX_MICRO_MEASURE_H

#include <stdint.h>
#include <time.h>

static __attribute__((noinline)) void phx_micro_measured(void (*part)(void *), void *arg) {
    part(arg);
    __asm__ __volatile__("" ::: "memory");
}

static __attribute__((noinline, unused)) void phx_micro_counted(void) {
    __asm__ __volatile__("" ::: "memory");
}

static inline int64_t phx_micro_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Nanoseconds that part(arg) took. */
static inline int64_t phx_micro_timed(void (*part)(void *), void *arg) {
    int64_t start = phx_micro_now_ns();
    phx_micro_measured(part, arg);
    return phx_micro_now_ns() - start;
}

/* The compiler may not know what `word` is, nor leave out what computes it. */
static inline uint64_t phx_micro_opaque(uint64_t word) {
    __asm__ __volatile__("" : "+r"(word));
    return word;
}

#endif
