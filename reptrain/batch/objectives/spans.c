/* The spans of windows and the rows made of them, loaded by spans_native.py.
   The results equal those of spans.py bit for bit. */

#include <stdlib.h>
#include <string.h>

#include "../../philox.h"

#define IGNORE (-100)
#define BUCKETS 256

/* Draws 0 to count - 1 of a key, without their lowest bit: `random.uint64(key, place) >> 1`. */
EACH_PROCESSOR static void draw(uint64_t key, uint64_t *restrict drawn, uint32_t count) {
  for (uint32_t place = 0; place < count; place++) drawn[place] = philox4x32(key, place, 0, 0, 0) >> 1;
}

/* Marks the `least` smallest draws; of equal ones the first. Draws are uniform, so a bucket holds few. */
static void mark_smallest(const uint64_t *drawn, uint8_t *marked, uint32_t *held, int64_t count, int64_t least) {
  uint32_t sizes[BUCKETS] = {0};
  memset(marked, 0, (size_t)count);
  if (least <= 0) return;
  for (int64_t place = 0; place < count; place++) sizes[drawn[place] >> 55]++;
  uint64_t bucket = 0;
  while ((int64_t)sizes[bucket] < least) least -= sizes[bucket++];
  int64_t size = 0;
  for (int64_t place = 0; place < count; place++) {
    uint64_t of = drawn[place] >> 55;
    marked[place] = of < bucket;
    if (of != bucket) continue;
    int64_t at = size++;
    for (; at > 0 && drawn[held[at - 1]] > drawn[place]; at--) held[at] = held[at - 1];
    held[at] = (uint32_t)place;
  }
  for (int64_t at = 0; at < least; at++) marked[held[at]] = 1;
}

/* Lengths of the parts of a random composition of `total`, zeros where there are fewer. */
static void compose(int64_t total, int64_t parts, uint64_t key, int64_t *lengths, uint64_t *drawn,
                    uint8_t *marked, uint32_t *held) {
  int64_t cuts = parts - 1 < total - 1 ? parts - 1 : total - 1, part = 0, begin = 0;
  memset(lengths, 0, (size_t)(parts > 1 ? parts : 1) * sizeof *lengths);
  if (total <= 0) return;
  draw(key, drawn, (uint32_t)(total - 1));
  mark_smallest(drawn, marked, held, total - 1, cuts);
  for (int64_t place = 0; place < total - 1; place++) {
    if (!marked[place]) continue;
    lengths[part++] = place + 1 - begin;
    begin = place + 1;
  }
  lengths[part] = total - begin;
}

/* Returns 0, or 1 without memory or with counts that do not fit. */
int draw_spans(const int64_t *length, const int64_t *noise, const int64_t *spans, const uint64_t *kept_key,
               const uint64_t *hidden_key, uint8_t *is_noise, int64_t rows, int64_t width) {
  int64_t most = 1, failed = 1;
  for (int64_t row = 0; row < rows; row++) {
    most = spans[row] > most ? spans[row] : most;
    if (noise[row] < 0 || noise[row] > length[row] || length[row] > width) return 1;
  }
  uint64_t *drawn = malloc((size_t)(width + 1) * sizeof *drawn);
  uint32_t *held = malloc((size_t)(width + 1) * sizeof *held);
  uint8_t *marked = malloc((size_t)(width + 1));
  int64_t *kept = malloc((size_t)most * sizeof *kept), *hidden = malloc((size_t)most * sizeof *hidden);
  if (drawn && held && marked && kept && hidden) {
    failed = 0;
    memset(is_noise, 0, (size_t)(rows * width));
    for (int64_t row = 0; row < rows; row++) {
      uint8_t *at = is_noise + row * width;
      compose(length[row] - noise[row], spans[row], kept_key[row], kept, drawn, marked, held);
      compose(noise[row], spans[row], hidden_key[row], hidden, drawn, marked, held);
      for (int64_t span = 0; span < (spans[row] > 1 ? spans[row] : 1); span++) {
        at += kept[span];
        memset(at, 1, (size_t)hidden[span]);
        at += hidden[span];
      }
    }
  }
  free(drawn), free(held), free(marked), free(kept), free(hidden);
  return (int)failed;
}

/* The first `count` values at a place of a row, without those past its `width` columns. */
static void put(int64_t *row, int64_t width, int64_t place, const int64_t *values, int64_t count) {
  if (place >= width) return;
  memcpy(row + place, values, (size_t)(count < width - place ? count : width - place) * sizeof *row);
}

/* The segments of a row's columns; returns the largest. A document EOS of -1 gives one segment. */
static int64_t find_segments(const int64_t *tokens, int64_t length, int64_t width, int64_t document_eos,
                             int64_t *segments) {
  int64_t document = 1;
  for (int64_t column = 0; column < width; column++) {
    segments[column] = column < length ? document : 0;
    document += document_eos >= 0 && tokens[column] == document_eos;
  }
  return length > 0 ? segments[length - 1] : 0;
}

/* Returns 0, or 1 without memory, or if a row has more spans than sentinels or does not fit. A value in the
   column after the last is dropped, as `scatter` does. */
int hide_spans(const int64_t *tokens, const uint8_t *is_noise, const int64_t *length, const int64_t *sentinels,
               int64_t num_sentinels, int64_t eos, int64_t document_eos, int64_t rows, int64_t width,
               int64_t inputs, int64_t targets, int64_t *source, int64_t *source_segment, int64_t *target,
               int64_t *segment, uint8_t *is_raw) {
  int64_t *segments = malloc((size_t)(width + 1) * sizeof *segments);
  int failed = segments == NULL;
  for (int64_t row = 0; row < rows && !failed; row++) {
    int64_t span = 0, kept = 0, end = 0, begin = 0, tokens_here = length[row] < width ? length[row] : width;
    int64_t last = find_segments(tokens, tokens_here, width, document_eos, segments);
    memset(source, 0, (size_t)inputs * sizeof *source);
    memset(source_segment, 0, (size_t)inputs * sizeof *source);
    memset(segment, 0, (size_t)targets * sizeof *segment);
    memset(is_raw, 0, (size_t)targets);
    for (int64_t column = 0; column < targets; column++) target[column] = IGNORE;
    while (begin < width) {
      /* A run of tokens that are all kept or all hidden. */
      int noise = is_noise[begin];
      const uint8_t *other = memchr(is_noise + begin, !noise, (size_t)(width - begin));
      int64_t count = (other ? other - is_noise : width) - begin;
      if (!noise) {
        int64_t present = begin + count <= tokens_here ? count : tokens_here - begin;
        if (present > 0) {
          put(source, inputs, kept, tokens + begin, present);
          put(source_segment, inputs, kept, segments + begin, present);
          kept += present;
        }
      } else {
        if (span == num_sentinels) break;
        if (begin < tokens_here) {
          put(source, inputs, kept, sentinels + span, 1);
          put(source_segment, inputs, kept++, segments + begin, 1);
        }
        put(target, targets, end, sentinels + span++, 1);
        put(segment, targets, end++, segments + begin, 1);
        put(target, targets, end, tokens + begin, count);
        put(segment, targets, end, segments + begin, count);
        for (int64_t place = end; place < end + count && place < targets; place++) is_raw[place] = 1;
        end += count;
      }
      begin += count;
    }
    if (tokens_here > 0) {
      put(source, inputs, kept++, &eos, 1);
      put(source_segment, inputs, kept - 1, &last, 1);
      put(target, targets, end++, &eos, 1);
      put(segment, targets, end - 1, &last, 1);
    }
    failed = begin < width || kept > inputs + 1 || end > targets + 1;
    tokens += width, is_noise += width;
    source += inputs, source_segment += inputs;
    target += targets, segment += targets, is_raw += targets;
  }
  free(segments);
  return failed;
}
