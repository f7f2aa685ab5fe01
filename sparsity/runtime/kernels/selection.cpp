// Which entries of tensors have the smallest or largest magnitude: a sample brackets the order statistic, one pass takes
// all below and collects the few inside, and those are searched. Magnitudes are compared as the integers of their bits,
// which have the same order.
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
constexpr long SAMPLES = 1 << 15;
constexpr double DEVIATIONS = 5;  // of the sample's order statistic: a guess fails once in 10^6 times
constexpr uint32_t BINS = 1 << 11;
constexpr uint32_t LARGEST = 0x7fffffff;

struct Part {
  const uint32_t *values;
  const uint8_t *mask;
  uint8_t outside;  // 1 to choose where the mask is 0
  uint8_t *chosen;
  long length, start;  // start: entries in the parts before
};

struct Candidate {
  uint32_t key;
  uint32_t place;  // in its piece
};

struct Piece {
  const Part *part;
  long begin, end;
  long available = 0, below = 0;
  std::vector<Candidate> near;
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
void take_below(Piece &piece, uint32_t low, uint32_t high, uint32_t flip) {
  const Part &part = *piece.part;
  thread_local Candidate collected[PIECE];
  Candidate *end = collected;
  for (long i = piece.begin; i < piece.end; i += BLOCK) {
    const uint32_t *values = part.values + i;
    uint8_t *chosen = part.chosen + i;
    alignas(64) uint8_t near[BLOCK] = {};
    const long length = piece.end - i;
    if (length >= BLOCK) compare(values, part.mask + i, part.outside, BLOCK, low, high, flip, chosen, near);
    else compare(values, part.mask + i, part.outside, length, low, high, flip, chosen, near);
    for (uint64_t found = bits_of(near); found; found &= found - 1) {
      const int j = __builtin_ctzll(found);
      *end++ = {key_of(values[j], flip), (uint32_t)(i - piece.begin + j)};
    }
  }
  piece.near.assign(collected, end);
  piece.below = count_true(part.chosen + piece.begin, piece.end - piece.begin);
}

// Stops early, and returns false, where work does.
template <class Work>
bool for_pieces(std::vector<Piece> &pieces, int threads, Work work) {
  std::atomic<size_t> next{0};
  std::atomic<bool> fine{true};
  run_together((int)std::min<size_t>((size_t)threads, pieces.size()), [&](int) {
    try {
      for (size_t i; fine && (i = next++) < pieces.size();)
        if (!work(pieces[i])) fine = false;
    } catch (const std::bad_alloc &) {
      fine = false;
    }
  });
  return fine;
}

// Two keys with the order statistic between them, very likely.
void guess(const std::vector<Part> &parts, long total, long available, long count, uint32_t flip, uint32_t &low,
           uint32_t &high) {
  const long step = std::max(1L, total / SAMPLES) | 1;  // odd, so that it runs through rows of even length
  std::vector<uint32_t> sample;
  long at = 0;
  for (const Part &part : parts) {
    for (; at < part.start + part.length; at += step)
      if (part.mask[at - part.start] ^ part.outside) sample.push_back(key_of(part.values[at - part.start], flip));
  }
  low = 0, high = LARGEST;
  const double size = (double)sample.size(), share = (double)count / (double)available;
  const double expected = share * size, deviation = std::sqrt(share * (1 - share) * size);
  const double first = std::floor(expected - DEVIATIONS * deviation) - 2;
  const double last = std::ceil(expected + DEVIATIONS * deviation) + 2;
  const auto nth = [&](double n) {
    std::nth_element(sample.begin(), sample.begin() + (long)n, sample.end());
    return sample[(size_t)n];
  };
  if (first >= 0) low = nth(first);
  if (last < size) high = nth(last);
}

// Of the candidates from low to high, the key of the one at place `rank` from 1; rank becomes its place among equal ones.
uint32_t order_statistic(const std::vector<Piece> &pieces, uint32_t low, uint32_t high, long &rank) {
  int shift = 0;
  while ((high - low) >> shift >= BINS) shift++;
  long counts[BINS] = {};
  for (const Piece &piece : pieces)
    for (const Candidate &each : piece.near) counts[(each.key - low) >> shift]++;
  uint32_t bin = 0;
  while (rank > counts[bin]) rank -= counts[bin++];
  std::vector<uint32_t> keys;
  keys.reserve((size_t)counts[bin]);
  for (const Piece &piece : pieces)
    for (const Candidate &each : piece.near)
      if ((each.key - low) >> shift == bin) keys.push_back(each.key);
  std::nth_element(keys.begin(), keys.begin() + (rank - 1), keys.end());
  const uint32_t found = keys[(size_t)rank - 1];
  rank = std::count(keys.begin(), keys.begin() + rank, found);  // nothing larger lies before it
  return found;
}

// Take the `missing` candidates of smallest key, of equal ones the first.
void take_near(std::vector<Piece> &pieces, uint32_t low, uint32_t high, long missing) {
  const uint32_t threshold = order_statistic(pieces, low, high, missing);
  for (const Piece &piece : pieces) {
    uint8_t *chosen = piece.part->chosen + piece.begin;
    for (const Candidate &each : piece.near)
      chosen[each.place] = each.key < threshold || (each.key == threshold && missing-- > 0);
  }
}

bool select(const std::vector<Part> &parts, long total, long count, uint32_t flip, int threads) {
  std::vector<Piece> pieces;
  for (const Part &part : parts)
    for (long begin = 0; begin < part.length; begin += PIECE)
      pieces.push_back({&part, begin, std::min(part.length, begin + PIECE), 0, 0, {}});
  for_pieces(pieces, threads, [](Piece &piece) {
    const long length = piece.end - piece.begin, inside = count_true(piece.part->mask + piece.begin, length);
    piece.available = piece.part->outside ? length - inside : inside;
    return true;
  });
  long available = 0, below = 0;
  for (const Piece &piece : pieces) available += piece.available;
  if (count > available) return false;
  uint32_t low, high;
  guess(parts, total, available, count, flip, low, high);
  std::atomic<long> near{0};
  const bool few = for_pieces(pieces, threads, [&](Piece &piece) {
    take_below(piece, low, high, flip);
    return (near += (long)piece.near.size()) <= total / 4;
  });
  for (const Piece &piece : pieces) below += piece.below;
  const long missing = count - below;
  if (!few || missing < 0 || missing > near) return false;
  if (missing) take_near(pieces, low, high, missing);
  return true;
}

}  // namespace

extern "C" {

int selection_version() { return 1; }

void selection_use_openmp(void *parallel, void *num_threads, void *thread_num) {
  use_openmp(parallel, num_threads, thread_num);
}

// Mark in `chosen` the `count` entries of smallest (or largest) magnitude where the mask is 1 (or, outside, 0), in all
// parts together; of equal ones those of earlier parts, in them the first. 0, or 1 if it has to be done otherwise: the
// guess was wrong, most are equal, or memory was short.
int selection_run(int parts, const float *const *values, const uint8_t *const *masks, uint8_t *const *chosen,
                  const long *lengths, int outside, long count, int largest, int threads) {
  try {
    std::vector<Part> all;
    long total = 0;
    for (int i = 0; i < parts; i++) {
      const uint32_t *bits = reinterpret_cast<const uint32_t *>(values[i]);
      all.push_back({bits, masks[i], (uint8_t)(outside != 0), chosen[i], lengths[i], total});
      total += lengths[i];
    }
    return select(all, total, count, largest ? LARGEST : 0, threads) ? 0 : 1;
  } catch (const std::bad_alloc &) {
    return 1;
  }
}
}
