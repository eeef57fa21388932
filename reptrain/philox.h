/* Philox4x32-10, as `random.philox4x32` computes it. */

#ifndef REPTRAIN_PHILOX_H
#define REPTRAIN_PHILOX_H

#include <stdint.h>

/* The first 64 bits of the block of a counter, given as four 32-bit words. The key changes in each of the ten
   rounds. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
static inline uint64_t philox4x32(uint64_t key, uint64_t c0, uint64_t c1, uint64_t c2, uint64_t c3) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = 0xD2511F53u * c0, p1 = 0xCD9E8D57u * c2;
    c0 = (p1 >> 32) ^ c1 ^ k0;
    c1 = p1 & 0xFFFFFFFFu;
    c2 = (p0 >> 32) ^ c3 ^ k1;
    c3 = p0 & 0xFFFFFFFFu;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0 | c1 << 32;
}

#endif
