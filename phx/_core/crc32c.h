/* CRC-32C (Castagnoli), the same number on every machine, by the fastest way this one has.
 *
 *     phx_crc32c(0, data, count)      checksum of data
 *     phx_crc32c(crc, more, count)    the checksum goes on: crc of data followed by more
 *     phx_crc32c_moved(bits, count)   what a difference in a crc becomes behind `count` more bytes:
 *                                     crc(a, data) ^ crc(b, data) == moved(a ^ b, count of data)
 *
 * The way is chosen once, when the module is loaded: SSE4.2 (x86-64), the ARMv8 CRC extension
 * (aarch64), else a table, eight bytes at a step. Nothing needs a compiler flag for the machine.
 *
 * Sources: polynomial and test vectors RFC 3720, B.4. A crc instruction has a latency of three
 * cycles and a throughput of one, so long runs go through three lanes that are joined afterwards: a
 * crc is linear, and "followed by LANE zero bytes" is one 32 x 32 bit matrix, kept as a table.
 */
#ifndef PHX_CRC32C_H
#define PHX_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#define PHX_CRC_HARDWARE "sse4.2"
#define PHX_CRC_TARGET __attribute__((target("sse4.2")))
#define PHX_CRC_STEP8(crc, word) ((uint32_t)__builtin_ia32_crc32di((crc), (word)))
#define PHX_CRC_STEP1(crc, byte) __builtin_ia32_crc32qi((crc), (byte))
#elif defined(__aarch64__)
#include <arm_acle.h>
#define PHX_CRC_HARDWARE "armv8"
#if defined(__ARM_FEATURE_CRC32)
#define PHX_CRC_TARGET
#elif defined(__clang__)
#define PHX_CRC_TARGET __attribute__((target("crc")))
#else
#define PHX_CRC_TARGET __attribute__((target("+crc")))
#endif
#define PHX_CRC_STEP8(crc, word) __crc32cd((crc), (word))
#define PHX_CRC_STEP1(crc, byte) __crc32cb((crc), (byte))
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

enum { PHX_CRC_LANE = 256 };

struct PhxCrcTables {
    uint32_t step[8][256]; /* step[k][b]: byte b, followed by k zero bytes */
    uint32_t lane[4][256]; /* lane[k][b]: byte k of a crc being b, then PHX_CRC_LANE zero bytes */

    constexpr PhxCrcTables() : step(), lane() {
        for (uint32_t b = 0; b < 256; b++) {
            uint32_t crc = b;
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0);
            step[0][b] = crc;
        }
        for (int k = 1; k < 8; k++)
            for (uint32_t b = 0; b < 256; b++)
                step[k][b] = (step[k - 1][b] >> 8) ^ step[0][step[k - 1][b] & 255];
        for (int bit = 0; bit < 32; bit++) {
            uint32_t crc = 1u << bit;
            for (int i = 0; i < PHX_CRC_LANE; i++) crc = (crc >> 8) ^ step[0][crc & 255];
            for (uint32_t b = 0; b < 256; b++)
                if (b & (1u << (bit & 7))) lane[bit >> 3][b] ^= crc;
        }
    }
};

static constexpr PhxCrcTables phx_crc_tables;

/* The portable way; also the reference that the others are compared with. */
static inline uint32_t phx_crc32c_table(uint32_t crc, const void *data, size_t count) {
    const PhxCrcTables &t = phx_crc_tables;
    const uint8_t *p = (const uint8_t *)data;
    crc = ~crc;
    for (; count >= 8; p += 8, count -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        word ^= crc;
        crc = 0;
        for (int i = 0; i < 8; i++) crc ^= t.step[7 - i][(word >> (8 * i)) & 255];
    }
    for (; count > 0; p++, count--) crc = (crc >> 8) ^ t.step[0][(crc ^ *p) & 255];
    return ~crc;
}

static inline uint32_t phx_crc_skip_lane(uint32_t crc) {
    const PhxCrcTables &t = phx_crc_tables;
    return t.lane[0][crc & 255] ^ t.lane[1][(crc >> 8) & 255] ^ t.lane[2][(crc >> 16) & 255] ^
           t.lane[3][crc >> 24];
}

#ifdef PHX_CRC_HARDWARE

PHX_CRC_TARGET static inline uint32_t phx_crc32c_hardware(uint32_t crc, const void *data,
                                                          size_t count) {
    const uint8_t *p = (const uint8_t *)data;
    uint64_t word, word2, word3;
    crc = ~crc;
    while (count >= 3 * PHX_CRC_LANE) {
        uint32_t crc2 = 0, crc3 = 0;
        for (int i = 0; i < PHX_CRC_LANE; i += 8) {
            memcpy(&word, p + i, 8);
            memcpy(&word2, p + i + PHX_CRC_LANE, 8);
            memcpy(&word3, p + i + 2 * PHX_CRC_LANE, 8);
            crc = PHX_CRC_STEP8(crc, word);
            crc2 = PHX_CRC_STEP8(crc2, word2);
            crc3 = PHX_CRC_STEP8(crc3, word3);
        }
        crc = phx_crc_skip_lane(phx_crc_skip_lane(crc) ^ crc2) ^ crc3;
        p += 3 * PHX_CRC_LANE;
        count -= 3 * PHX_CRC_LANE;
    }
    for (; count >= 8; p += 8, count -= 8) {
        memcpy(&word, p, 8);
        crc = PHX_CRC_STEP8(crc, word);
    }
    for (; count > 0; p++, count--) crc = PHX_CRC_STEP1(crc, *p);
    return ~crc;
}

static inline bool phx_crc_detect(void) {
#if defined(__x86_64__)
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 20));
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; /* HWCAP_CRC32 */
#else
    return true; /* every aarch64 Mac has it */
#endif
}

static const bool phx_crc_has_hardware = phx_crc_detect();

static inline uint32_t phx_crc32c(uint32_t crc, const void *data, size_t count) {
    if (phx_crc_has_hardware) return phx_crc32c_hardware(crc, data, count);
    return phx_crc32c_table(crc, data, count);
}

static inline const char *phx_crc32c_way(void) {
    return phx_crc_has_hardware ? PHX_CRC_HARDWARE : "table";
}

#else

static inline uint32_t phx_crc32c(uint32_t crc, const void *data, size_t count) {
    return phx_crc32c_table(crc, data, count);
}

static inline const char *phx_crc32c_way(void) { return "table"; }

#endif

/* A crc is linear, so the data does not matter: as many zeros do. */
static inline uint32_t phx_crc32c_moved(uint32_t bits, size_t count) {
    static const uint8_t zeros[PHX_CRC_LANE] = {};
    for (; count >= PHX_CRC_LANE; count -= PHX_CRC_LANE) bits = phx_crc_skip_lane(bits);
    return ~phx_crc32c(~bits, zeros, count);
}

#endif
