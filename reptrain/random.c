/* `random.philox4x32` over arrays, loaded by random_native.py. */

#include "philox.h"

/* The first 64 bits of each block. Its counter has the low and the high half of word, third, and use. */
EACH_PROCESSOR void blocks(const uint64_t *restrict key, const uint64_t *restrict word, uint64_t third,
                           uint64_t use, uint64_t *restrict out, int64_t count) {
  for (int64_t at = 0; at < count; at++)
    out[at] = philox4x32(key[at], word[at] & 0xFFFFFFFFu, word[at] >> 32, third, use);
}

enum { COARSE = 11, MOST_FINE = 12 };

/* The finalizer of splitmix64, as `random.mix`. */
static inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

/* Number i of the words that give the order: random above the bits of the index. */
static inline uint64_t ordered(uint64_t key, uint64_t index, uint64_t low) {
  return (mix(key + (index + 1) * 0x9E3779B97F4A7C15u) & ~low) | index;
}

/* The permutation of `random.shuffled`: the low bits of the words in ascending order. Words are distributed by
   their highest bits, then by the next ones, and inserted among their few neighbors. scratch has count words. */
EACH_PROCESSOR void shuffled(uint64_t key, int64_t count, int64_t *restrict out, uint64_t *restrict scratch) {
  int bits = 0;
  while (bits < 33 && ((uint64_t)(count - 1) >> bits) > 0) bits++;
  int fine = bits - COARSE - 3;
  fine = fine < 0 ? 0 : fine > MOST_FINE ? MOST_FINE : fine;
  const uint64_t low = ((uint64_t)1 << bits) - 1, fine_mask = ((uint64_t)1 << fine) - 1;
  int64_t ends[(1 << COARSE) + 1] = {0}, places[1 << MOST_FINE];
  for (int64_t at = 0; at < count; at++) ends[(ordered(key, at, low) >> (64 - COARSE)) + 1]++;
  for (int part = 0; part < 1 << COARSE; part++) ends[part + 1] += ends[part];
  for (int64_t at = 0; at < count; at++) {
    uint64_t word = ordered(key, at, low);
    scratch[ends[word >> (64 - COARSE)]++] = word;
  }
  /* Each end has moved to the end of its part. */
  int64_t begin = 0;
  for (int part = 0; part < 1 << COARSE; part++) {
    const int64_t end = ends[part];
    uint64_t *sorted = (uint64_t *)out + begin;
    for (uint64_t place = 0; place <= fine_mask; place++) places[place] = 0;
    for (int64_t at = begin; at < end; at++) places[scratch[at] >> (64 - COARSE - fine) & fine_mask]++;
    int64_t before = 0;
    for (uint64_t place = 0; place <= fine_mask; place++) {
      const int64_t here = places[place];
      places[place] = before;
      before += here;
    }
    for (int64_t at = begin; at < end; at++)
      sorted[places[scratch[at] >> (64 - COARSE - fine) & fine_mask]++] = scratch[at];
    for (int64_t at = 1; at < end - begin; at++) {
      const uint64_t word = sorted[at];
      int64_t place = at;
      for (; place > 0 && sorted[place - 1] > word; place--) sorted[place] = sorted[place - 1];
      sorted[place] = word;
    }
    for (int64_t at = 0; at < end - begin; at++) sorted[at] &= low;
    begin = end;
  }
}
