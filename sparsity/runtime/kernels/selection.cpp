// Which entries of tensors have the smallest or largest magnitude: a sample brackets the order statistic, one pass takes
// all below and collects the few inside, and those are searched; where the sample misleads, digits are counted.
// Magnitudes are compared as the integers of their bits, which have the same order. Several selections are made together,
// so that threads find work in all of them.
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "threads.h"

namespace {

constexpr long BLOCK = 64;       // entries looked at together
constexpr long PIECE = 1 << 14;  // entries that a thread takes at a time
constexpr long SAMPLES = 1 << 14;
constexpr long AHEAD = 16;  // samples that are fetched before they are looked at
constexpr double DEVIATIONS = 5;  // of the sample's order statistic: a guess fails once in 10^6 times
constexpr uintptr_t SMALL_PAGE = 1 << 12, LARGE_PAGE = 1 << 21;
constexpr int KEY_BITS = 31, DIGIT_BITS = 11;
constexpr uint32_t BINS = 1 << DIGIT_BITS;
constexpr uint32_t LARGEST = 0x7fffffff;

struct Selection {
  long count;         // of entries to choose
  uint8_t outside;    // 1 to choose where the mask is 0
  uint32_t flip;      // see key_of
  long total = 0;     // entries in all parts
  uint32_t low = 0, high = LARGEST;  // keys with the order statistic between them, very likely
  size_t first_part = 0, last_part = 0, first_piece = 0, last_piece = 0;
  std::atomic<long> near{0};
  std::atomic<bool> misled{false}, failed{false};
};

struct Part {
  Selection *selection;
  const uint32_t *values;
  const uint8_t *mask;
  uint8_t *chosen;
  long length, start;  // start: entries in the parts before
};

struct Candidate {
  uint32_t key;
  uint32_t place;  // in its piece
};

struct Piece {
  const Part *part;
  long begin, end, below;
  std::vector<Candidate> near;
};

inline Selection &selection_of(Selection &self) { return self; }
inline Selection &selection_of(Piece &piece) { return *piece.part->selection; }

// The order of magnitudes, or with flip = LARGEST the reverse.
inline uint32_t key_of(uint32_t bits, uint32_t flip) { return (bits & LARGEST) ^ flip; }

long count_true(const uint8_t *bytes, long length) {
  long total = 0;
  for (long i = 0; i < length;) {
    const long end = std::min(length, i + 255 * BLOCK);
    uint8_t sums[BLOCK] = {};
    for (; i + BLOCK <= end; i += BLOCK)
      for (long j = 0; j < BLOCK; j++) sums[j] += bytes[i + j];
    for (long j = 0; j < BLOCK; j++) total += sums[j];
    if (end == length)
      for (; i < length; i++) total += bytes[i];
  }
  return total;
}

// The bytes of a block, each 0 or 1, as bits.
inline uint64_t bits_of(const uint8_t *bytes) {
  uint64_t bits = 0;
  for (int word = 0; word < 8; word++) {
    uint64_t eight;
    memcpy(&eight, bytes + 8 * word, 8);
    bits |= (eight * 0x0102040810204080 >> 56) << (8 * word);  // of the bytes' lowest bits
  }
  return bits;
}

// Whether to take each entry of a block, and whether it is from low to high.
inline void compare(const uint32_t *__restrict values, const uint8_t *__restrict mask, uint8_t outside, long length,
                    uint32_t low, uint32_t high, uint32_t flip, uint8_t *__restrict chosen, uint8_t *__restrict near) {
  for (long j = 0; j < length; j++) {
    const uint32_t key = key_of(values[j], flip);
    const uint8_t available = mask[j] ^ outside;
    chosen[j] = available & (uint8_t)(key < low);
    near[j] = available & (uint8_t)(key - low <= high - low);
  }
}

// Take what is below low, and note what is from there to high.
void take_below(Piece &piece) {
  const Part &part = *piece.part;
  const Selection &to = *part.selection;
  thread_local Candidate collected[PIECE];
  Candidate *end = collected;
  for (long i = piece.begin; i < piece.end; i += BLOCK) {
    const uint32_t *values = part.values + i;
    const uint8_t *mask = part.mask + i;
    uint8_t *chosen = part.chosen + i;
    alignas(64) uint8_t near[BLOCK] = {};
    const long length = piece.end - i;
    if (length >= BLOCK) compare(values, mask, to.outside, BLOCK, to.low, to.high, to.flip, chosen, near);
    else compare(values, mask, to.outside, length, to.low, to.high, to.flip, chosen, near);
    for (uint64_t found = bits_of(near); found; found &= found - 1) {
      const int j = __builtin_ctzll(found);
      *end++ = {key_of(values[j], to.flip), (uint32_t)(i - piece.begin + j)};
    }
  }
  piece.near.assign(collected, end);
  piece.below = count_true(part.chosen + piece.begin, piece.end - piece.begin);
}

// Do the work for each, by several threads; where memory is short, the selection has failed.
template <class Each, class Work>
void for_all(Each &all, int threads, Work work) {
  std::atomic<size_t> next{0};
  run_together((int)std::max<size_t>(1, std::min<size_t>((size_t)threads, all.size())), [&](int) {
    for (size_t i; (i = next++) < all.size();) {
      try {
        if (!selection_of(all[i]).failed) work(all[i]);
      } catch (const std::bad_alloc &) {
        selection_of(all[i]).failed = true;
      }
    }
  });
}

// A distance between samples that shares no small factor with rows and kernels, whose entries would not all be met.
long sampling_step(long step) {
  while (step % 2 == 0 || step % 3 == 0 || step % 5 == 0 || step % 7 == 0) step++;
  return step;
}

// Two keys with the order statistic between them, very likely.
void guess(Selection &to, const std::vector<Part> &parts) {
  const long step = sampling_step(std::max(1L, to.total / SAMPLES));
  std::vector<uint32_t> sample;
  sample.reserve((size_t)(to.total / step + 1));
  long at = 0;
  for (size_t i = to.first_part; i < to.last_part; i++) {
    const Part &part = parts[i];
    for (; at < part.start + part.length; at += step) {
      const long place = at - part.start, ahead = std::min(place + AHEAD * step, part.length - 1);
      __builtin_prefetch(part.mask + ahead);
      __builtin_prefetch(part.values + ahead);
      if (part.mask[place] ^ to.outside) sample.push_back(key_of(part.values[place], to.flip));
    }
  }
  const double size = (double)sample.size(), share = (double)to.count / (double)to.total;
  const double expected = (double)to.count / (double)step, deviation = std::sqrt(expected * (1 - share));
  const double first = std::floor(expected - DEVIATIONS * deviation) - 2;
  const double last = std::ceil(expected + DEVIATIONS * deviation) + 2;
  const auto nth = [&](double n) {
    std::nth_element(sample.begin(), sample.begin() + (long)n, sample.end());
    return sample[(size_t)n];
  };
  if (first >= 0 && first < size) to.low = nth(first);
  if (last < size) to.high = nth(last);
}

// Of the candidates, the key of the one at place `rank` from 1; rank becomes its place among equal ones.
uint32_t order_statistic(const Selection &of, const std::vector<Piece> &pieces, long &rank) {
  int shift = 0;
  while ((of.high - of.low) >> shift >= BINS) shift++;
  long counts[BINS] = {};
  for (size_t i = of.first_piece; i < of.last_piece; i++)
    for (const Candidate &each : pieces[i].near) counts[(each.key - of.low) >> shift]++;
  uint32_t bin = 0;
  while (rank > counts[bin]) rank -= counts[bin++];
  std::vector<uint32_t> keys;
  keys.reserve((size_t)counts[bin]);
  for (size_t i = of.first_piece; i < of.last_piece; i++)
    for (const Candidate &each : pieces[i].near)
      if ((each.key - of.low) >> shift == bin) keys.push_back(each.key);
  std::nth_element(keys.begin(), keys.begin() + (rank - 1), keys.end());
  const uint32_t found = keys[(size_t)rank - 1];
  rank = std::count(keys.begin(), keys.begin() + rank, found);  // nothing larger lies before it
  return found;
}

// Take the `missing` candidates of smallest key, of equal ones the first.
void take_near(const Selection &to, const std::vector<Piece> &pieces, long missing) {
  const uint32_t threshold = order_statistic(to, pieces, missing);
  for (size_t i = to.first_piece; i < to.last_piece; i++) {
    uint8_t *chosen = pieces[i].part->chosen + pieces[i].begin;
    for (const Candidate &each : pieces[i].near)
      chosen[each.place] = each.key < threshold || (each.key == threshold && missing-- > 0);
  }
}

// Call visit(part, place, key) for all entries that one may choose from, in order.
template <class Visit>
void visit_all(const Selection &of, const std::vector<Part> &parts, Visit visit) {
  for (size_t i = of.first_part; i < of.last_part; i++)
    for (long place = 0; place < parts[i].length; place++)
      if (parts[i].mask[place] ^ of.outside) visit(parts[i], place, key_of(parts[i].values[place], of.flip));
}

// Select by the digits of keys, however they are distributed; false where there are not enough entries.
bool take_by_digits(const Selection &to, const std::vector<Part> &parts) {
  uint32_t threshold = 0;
  long missing = to.count;
  for (int shift = KEY_BITS; shift > 0;) {
    const int above = shift;
    shift = std::max(0, shift - DIGIT_BITS);
    long counts[BINS] = {};
    visit_all(to, parts, [&](const Part &, long, uint32_t key) {
      if (key >> above == threshold >> above) counts[(key >> shift) % BINS]++;
    });
    uint32_t digit = 0;
    while (digit < BINS && missing > counts[digit]) missing -= counts[digit++];
    if (digit == BINS) return false;
    threshold |= digit << shift;
  }
  for (size_t i = to.first_part; i < to.last_part; i++) memset(parts[i].chosen, 0, (size_t)parts[i].length);
  visit_all(to, parts, [&](const Part &part, long place, uint32_t key) {
    part.chosen[place] = key < threshold || (key == threshold && missing-- > 0);
  });
  return true;
}

void select(std::vector<Selection> &selections, const std::vector<Part> &parts, int threads) {
  std::vector<Piece> pieces;
  for (const Part &part : parts) {
    for (long begin = 0; begin < part.length; begin += PIECE)
      pieces.push_back({&part, begin, std::min(part.length, begin + PIECE), 0, {}});
    part.selection->last_piece = pieces.size();
  }
  for (size_t i = 1; i < selections.size(); i++) selections[i].first_piece = selections[i - 1].last_piece;
  for_all(selections, threads, [&](Selection &each) { guess(each, parts); });
  for_all(pieces, threads, [](Piece &piece) {
    Selection &to = *piece.part->selection;
    if (to.misled) return;
    take_below(piece);
    if ((to.near += (long)piece.near.size()) > to.total / 4) to.misled = true;
  });
  for_all(selections, threads, [&](Selection &each) {
    long missing = each.count;
    for (size_t i = each.first_piece; i < each.last_piece; i++) missing -= pieces[i].below;
    if (each.misled || missing < 0 || missing > each.near) {
      if (!take_by_digits(each, parts)) each.failed = true;
    } else if (missing) {
      take_near(each, pieces, missing);
    }
  });
}

// Get new memory from the system, in large pages if it has them: to clear small ones takes longer than to fill them. Each
// large page by one thread, since those that want it at once would each clear one.
void touch(uint8_t *memory, long bytes, int threads) {
  const uintptr_t begin = (uintptr_t)memory, end = begin + (uintptr_t)bytes;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t first = (begin + SMALL_PAGE - 1) / SMALL_PAGE * SMALL_PAGE;
  if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);  // a wish: what it returns changes nothing
#endif
  std::atomic<uintptr_t> next{begin / LARGE_PAGE};
  run_together(threads, [&](int) {
    for (uintptr_t page; (page = next++ * LARGE_PAGE) < end;)
      for (uintptr_t at = std::max(begin, page); at < std::min(end, page + LARGE_PAGE); at += SMALL_PAGE)
        *reinterpret_cast<volatile uint8_t *>(at) = 0;
  });
}

}  // namespace

extern "C" {

void selection_use_openmp(void *parallel, void *num_threads, void *thread_num) {
  use_openmp(parallel, num_threads, thread_num);
}

// For each selection, mark in `chosen` the `counts` entries of smallest (or largest) magnitude where the mask is 1 (or,
// outside, 0), in all of its `parts` together; of equal ones those of earlier parts, in them the first. `values`, `masks`,
// `chosen` and `lengths` are those of all parts, one selection's after another's; `chosen` lies in new `memory`. `failed`
// gets 0, or 1 for a selection that was not made: there are not enough entries, or memory was short.
void selection_run(int selections, const int *parts, const long *counts, const int *outside, const int *largest,
                   const float *const *values, const uint8_t *const *masks, uint8_t *const *chosen, const long *lengths,
                   uint8_t *memory, long bytes, int *failed, int threads) {
  std::fill(failed, failed + selections, 1);
  try {
    touch(memory, bytes, threads);
    std::vector<Selection> all((size_t)selections);
    std::vector<Part> of_all;
    for (size_t i = 0, part = 0; i < all.size(); i++) {
      Selection &each = all[i];
      each.count = counts[i], each.outside = outside[i] != 0, each.flip = largest[i] ? LARGEST : 0;
      each.first_part = part;
      for (; part < each.first_part + (size_t)parts[i]; part++) {
        const uint32_t *bits = reinterpret_cast<const uint32_t *>(values[part]);
        of_all.push_back({&each, bits, masks[part], chosen[part], lengths[part], each.total});
        each.total += lengths[part];
      }
      each.last_part = part;
    }
    select(all, of_all, threads);
    for (size_t i = 0; i < all.size(); i++) failed[i] = all[i].failed;
  } catch (const std::bad_alloc &) {
  }
}
}
