/* `random.philox4x32` over arrays, loaded by random_native.py. */

#include "philox.h"

/* The first 64 bits of each block. Its counter has the low and the high half of word, third, and use. */
EACH_PROCESSOR void blocks(const uint64_t *restrict key, const uint64_t *restrict word, uint64_t third,
                           uint64_t use, uint64_t *restrict out, int64_t count) {
  for (int64_t at = 0; at < count; at++)
    out[at] = philox4x32(key[at], word[at] & 0xFFFFFFFFu, word[at] >> 32, third, use);
}
