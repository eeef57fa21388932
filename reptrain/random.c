/* `random.philox4x32` over arrays, loaded by random_native.py. */

#include <stdint.h>

#ifdef FOR_EACH_PROCESSOR
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif

/* The first 64 bits of each block: ten rounds over the counter (low half of word, high half of word, third, use). */
EACH_PROCESSOR void blocks(const uint64_t *restrict key, const uint64_t *restrict word, uint64_t third,
                           uint64_t use, uint64_t *restrict out, int64_t count) {
  for (int64_t at = 0; at < count; at++) {
    uint64_t c0 = word[at] & 0xFFFFFFFFu, c1 = word[at] >> 32, c2 = third, c3 = use;
    uint32_t k0 = (uint32_t)key[at], k1 = (uint32_t)(key[at] >> 32);
    for (int round = 0; round < 10; round++) {
      uint64_t p0 = 0xD2511F53u * c0, p1 = 0xCD9E8D57u * c2;
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c1 = p1 & 0xFFFFFFFFu;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c3 = p0 & 0xFFFFFFFFu;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    out[at] = c0 | c1 << 32;
  }
}
