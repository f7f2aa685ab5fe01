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
constexpr long AHEAD = 32, AHEAD_ENTRIES = 1 << 10;  // samples and entries that are fetched before they are looked at
constexpr double DEVIATIONS = 4;  // of the sample's order statistic: a guess fails once in 16,000 times
constexpr int FEW = 2;            // candidates, which a block has seldom more of
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
  long length, start;  // start: entries in the parts of the selection before
  long other;          // number of an earlier part that marks entries in the same bytes, or -1
};

struct Candidate {
  uint32_t key;
  uint32_t place;  // in its piece
};

struct Piece {
  const Part *part;
  long begin, end;
  long below = 0;
  std::vector<Candidate> near = {};
  Piece *other = nullptr;  // a later one that marks entries in the same bytes
};

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

// Whether to take each entry of a block, and whether it is from low to high; `kept` is 1 to leave what is taken already.
inline void compare(const uint32_t *__restrict values, const uint8_t *__restrict mask, uint8_t outside, long length,
                    uint32_t low, uint32_t high, uint32_t flip, uint8_t kept, uint8_t *__restrict chosen,
                    uint8_t *__restrict near) {
  for (long j = 0; j < length; j++) {
    const uint32_t key = key_of(values[j], flip);
    const uint8_t available = mask[j] ^ outside;
    chosen[j] = (chosen[j] & kept) | (available & (uint8_t)(key < low));
    near[j] = available & (uint8_t)(key - low <= high - low);
  }
}

// Append the entries of a block whose bits are set. Room is needed for one more than these: whether there is one more is
// what no processor can predict, so the first ones are written without asking.
inline Candidate *append(uint64_t bits, const uint32_t *values, uint32_t flip, uint32_t first, Candidate *end) {
  for (int i = 0; i < FEW; i++) {
    const uint32_t j = (uint32_t)__builtin_ctzll(bits + !bits);
    *end = {key_of(values[j], flip), first + j};
    end += bits != 0;
    bits &= bits - 1;
  }
  for (; bits; bits &= bits - 1) {
    const uint32_t j = (uint32_t)__builtin_ctzll(bits);
    *end++ = {key_of(values[j], flip), first + j};
  }
  return end;
}

// The processor itself fetches only as far as a small page goes.
inline void fetch_block(const uint32_t *values, const uint8_t *mask, uint8_t *chosen) {
  for (long j = 0; j < BLOCK; j += 16) __builtin_prefetch(values + j);
  __builtin_prefetch(mask);
  __builtin_prefetch(chosen, 1);
}

// Take what is below low, and note what is from there to high.
void take_below(Piece &piece) {
  const Part &part = *piece.part;
  const Selection &to = *part.selection;
  const uint8_t kept = part.other >= 0;
  const long length = piece.end - piece.begin;
  uint8_t *all_chosen = part.chosen + piece.begin;
  const long before = kept ? count_true(all_chosen, length) : 0;
  thread_local Candidate collected[PIECE + 1];
  Candidate *end = collected;
  for (long i = 0; i < length; i += BLOCK) {
    const uint32_t *values = part.values + piece.begin + i;
    const uint8_t *mask = part.mask + piece.begin + i;
    uint8_t *chosen = all_chosen + i;
    fetch_block(values + AHEAD_ENTRIES, mask + AHEAD_ENTRIES, chosen + AHEAD_ENTRIES);
    alignas(64) uint8_t near[BLOCK] = {};
    if (length - i >= BLOCK) compare(values, mask, to.outside, BLOCK, to.low, to.high, to.flip, kept, chosen, near);
    else compare(values, mask, to.outside, length - i, to.low, to.high, to.flip, kept, chosen, near);
    end = append(bits_of(near), values, to.flip, (uint32_t)i, end);
  }
  if (!to.misled) piece.near.assign(collected, end);
  piece.below = count_true(all_chosen, length) - before;
}

// Do the work for all numbers below `all`, by several threads.
template <class Work>
void for_all(size_t all, int threads, Work work) {
  std::atomic<size_t> next{0};
  run_together((int)std::max<size_t>(1, std::min<size_t>((size_t)threads, all)), [&](int) {
    for (size_t i; (i = next++) < all;) work(i);
  });
}

// Do the work for a selection, unless it has failed; where memory is short, it does.
template <class Work>
void attempt(Selection &to, Work work) {
  try {
    if (!to.failed) work();
  } catch (const std::bad_alloc &) {
    to.failed = true;
  }
}

// A distance between samples that shares no small factor with rows and kernels, whose entries would not all be met.
long sampling_step(long step) {
  while (step % 2 == 0 || step % 3 == 0 || step % 5 == 0 || step % 7 == 0) step++;
  return step;
}

// Two keys with the order statistic between them, very likely.
void guess(Selection &to, const std::vector<Part> &parts) {
  const long step = sampling_step(std::max(1L, to.total / SAMPLES));
  std::vector<uint32_t> sample((size_t)(to.total / step + 2));
  size_t found = 0;
  long at = 0;
  for (size_t i = to.first_part; i < to.last_part; i++) {
    const Part &part = parts[i];
    for (; at < part.start + part.length; at += step) {
      const long place = at - part.start, ahead = std::min(place + AHEAD * step, part.length - 1);
      __builtin_prefetch(part.mask + ahead);
      __builtin_prefetch(part.values + ahead);
      sample[found] = key_of(part.values[place], to.flip);
      found += part.mask[place] ^ to.outside;
    }
  }
  const double size = (double)found, share = (double)to.count / (double)to.total;
  const double expected = (double)to.count / (double)step, deviation = std::sqrt(expected * (1 - share));
  const double first = std::floor(expected - DEVIATIONS * deviation) - 2;
  const double last = std::ceil(expected + DEVIATIONS * deviation) + 2;
  auto end = sample.begin() + (long)found;
  if (last < size) {
    const auto high = sample.begin() + (long)last;
    std::nth_element(sample.begin(), high, end);
    to.high = *high, end = high;
  }
  if (first >= 0 && first < size) {
    const auto low = sample.begin() + (long)first;
    std::nth_element(sample.begin(), low, end);
    to.low = *low;
  }
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
    for (const Candidate &each : pieces[i].near) {
      chosen[each.place] = each.key < threshold;
      if (each.key == threshold) chosen[each.place] = missing-- > 0;
    }
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
  visit_all(to, parts, [&](const Part &part, long place, uint32_t key) {
    part.chosen[place] = key < threshold || (key == threshold && missing-- > 0);
  });
  return true;
}

// All pieces in the order of parts, each with the later one that marks entries in the same bytes.
std::vector<Piece> pieces_of(std::vector<Selection> &selections, const std::vector<Part> &parts) {
  std::vector<Piece> pieces;
  std::vector<size_t> first;
  for (const Part &part : parts) {
    first.push_back(pieces.size());
    for (long begin = 0; begin < part.length; begin += PIECE)
      pieces.push_back({&part, begin, std::min(part.length, begin + PIECE)});
    part.selection->last_piece = pieces.size();
  }
  for (size_t i = 1; i < selections.size(); i++) selections[i].first_piece = selections[i - 1].last_piece;
  first.push_back(pieces.size());
  for (size_t i = 0; i < parts.size(); i++)
    for (size_t j = first[i]; parts[i].other >= 0 && j < first[i + 1]; j++)
      pieces[first[(size_t)parts[i].other] + j - first[i]].other = &pieces[j];
  return pieces;
}

void select(std::vector<Selection> &selections, const std::vector<Part> &parts, int threads) {
  std::vector<Piece> pieces = pieces_of(selections, parts);
  for_all(selections.size(), threads, [&](size_t i) { attempt(selections[i], [&] { guess(selections[i], parts); }); });
  for_all(pieces.size(), threads, [&](size_t i) {
    if (pieces[i].part->other >= 0) return;
    for (Piece *piece = &pieces[i]; piece; piece = piece->other) {
      Selection &to = *piece->part->selection;
      attempt(to, [&] {
        take_below(*piece);
        if ((to.near += (long)piece->near.size()) > to.total / 4) to.misled = true;
      });
    }
  });
  for_all(selections.size(), threads, [&](size_t i) {
    Selection &each = selections[i];
    attempt(each, [&] {
      long missing = each.count;
      for (size_t j = each.first_piece; j < each.last_piece; j++) missing -= pieces[j].below;
      if (each.misled || missing < 0 || missing > each.near) {
        if (!take_by_digits(each, parts)) each.failed = true;
      } else if (missing) {
        take_near(each, pieces, missing);
      }
    });
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
// `chosen` and `lengths` are those of all parts, one selection's after another's; `chosen` lies in new `memory`. Two parts
// of different selections may have the same `chosen`, if they have the same mask and one is of a selection outside.
// `failed` gets 0, or 1 for a selection that was not made, as there are not enough entries or memory was short; what has
// the same `chosen` is not made then either.
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
        const long other = std::find(chosen, chosen + part, chosen[part]) - chosen;
        of_all.push_back(
            {&each, bits, masks[part], chosen[part], lengths[part], each.total, other < (long)part ? other : -1});
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
