/* `counter.random_words` and `counter.dropout` on a CPU, compiled and loaded by counter_native.py.
   The layout of keys and words is that of counter.py, and the results are equal bit for bit. */

#include <stdint.h>
#include <string.h>

static inline uint64_t line_key_of(uint64_t key, uint64_t position) {
  uint64_t x = (key ^ position) + 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

static inline uint32_t word_of(uint32_t unit, uint32_t low, uint32_t high) {
  uint32_t x = (unit ^ low) * (high | 1u);
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

static inline float float_of_bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float x;
  memcpy(&x, &wide, sizeof x);
  return x;
}

/* To the nearest, ties to even. */
static inline uint16_t bf16_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : (uint16_t)rounded;
}

/* Lines first to end - 1, each of `units` units. The threshold is unsigned: it and the words have their
   highest bit flipped, so that signed words compare as unsigned ones. */
#define DROPOUT(NAME, ELEMENT, WIDE, WIDEN, NARROW)                                                      \
  EACH_PROCESSOR static void NAME##_lines(const ELEMENT *restrict x, const int64_t *restrict key,        \
                                          ELEMENT *restrict y, int64_t first, int64_t end,               \
                                          int64_t positions, uint32_t units, uint32_t threshold,         \
                                          WIDE scale) {                                                  \
    for (int64_t line = first; line < end; line++) {                                                     \
      uint64_t line_key = line_key_of((uint64_t)key[line / positions], (uint64_t)(line % positions));    \
      uint32_t low = (uint32_t)line_key, high = (uint32_t)(line_key >> 32);                              \
      const ELEMENT *from = x + line * units;                                                            \
      ELEMENT *to = y + line * units;                                                                    \
      for (uint32_t unit = 0; unit < units; unit++) {                                                    \
        ELEMENT scaled = NARROW(WIDEN(from[unit]) * scale);                                              \
        to[unit] = (word_of(unit, low, high) ^ 0x80000000u) >= threshold ? scaled : (ELEMENT)0;          \
      }                                                                                                  \
    }                                                                                                    \
  }                                                                                                      \
  void NAME(const ELEMENT *x, const int64_t *key, ELEMENT *y, int64_t lines, int64_t positions,          \
            int64_t units, int64_t threshold, double scale, int threads) {                               \
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")                   \
    for (int part = 0; part < threads; part++) {                                                         \
      NAME##_lines(x, key, y, lines * part / threads, lines * (part + 1) / threads, positions,           \
                   (uint32_t)units, (uint32_t)(threshold + 0x80000000LL), (WIDE)scale);                  \
    }                                                                                                    \
  }

#define SAME(x) (x)
DROPOUT(dropout_float32, float, float, SAME, SAME)
DROPOUT(dropout_float64, double, double, SAME, SAME)
DROPOUT(dropout_bfloat16, uint16_t, float, float_of_bf16, bf16_of_float)

EACH_PROCESSOR void random_words(const int64_t *restrict key, uint32_t *restrict y, int64_t lines,
                                 int64_t positions, int64_t units) {
  for (int64_t line = 0; line < lines; line++) {
    uint64_t line_key = line_key_of((uint64_t)key[line / positions], (uint64_t)(line % positions));
    uint32_t low = (uint32_t)line_key, high = (uint32_t)(line_key >> 32);
    uint32_t *to = y + line * units;
    for (uint32_t unit = 0; unit < (uint32_t)units; unit++) to[unit] = word_of(unit, low, high);
  }
}
