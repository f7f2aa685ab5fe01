// Tensors set to zero where a mask says so, by the bits of their entries. Memory that is zero there already is only read.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "threads.h"

namespace {

constexpr long BLOCK = 64;
constexpr long PIECE = 1 << 16;  // entries that a thread takes at a time

// Keep the entries of a block where the mask is 1, or with outside = 1 those where it is 0.
template <class Bits>
inline void keep(Bits *__restrict values, const uint8_t *__restrict mask, uint8_t outside, long length) {
  Bits lost = 0;
  for (long j = 0; j < length; j++) lost |= values[j] & (Bits)((Bits)(mask[j] ^ outside) - 1);
  if (!lost) return;
  for (long j = 0; j < length; j++) values[j] &= (Bits) - (Bits)(mask[j] ^ outside);
}

template <class Bits>
void keep_all(int parts, void *const *values, const uint8_t *const *masks, const long *lengths, int outside,
              int threads) {
  long pieces = 0;
  for (int i = 0; i < parts; i++) pieces += (lengths[i] + PIECE - 1) / PIECE;
  std::atomic<long> next{0};
  run_together((int)std::max(1L, std::min<long>(threads, pieces)), [&](int) {
    int part = 0;
    long first = 0;  // piece of the part
    for (long piece; (piece = next++) < pieces;) {
      for (long own; piece - first >= (own = (lengths[part] + PIECE - 1) / PIECE);) first += own, part++;
      const long begin = (piece - first) * PIECE, end = std::min(lengths[part], begin + PIECE);
      Bits *bits = static_cast<Bits *>(values[part]);
      long i = begin;
      for (; i + BLOCK <= end; i += BLOCK) keep(bits + i, masks[part] + i, (uint8_t)outside, BLOCK);
      keep(bits + i, masks[part] + i, (uint8_t)outside, end - i);
    }
  });
}

}  // namespace

extern "C" {

void masking_use_openmp(void *parallel, void *num_threads, void *thread_num) {
  use_openmp(parallel, num_threads, thread_num);
}

// Set to zero what lies where the masks are 0 (with outside = 1 where they are 1), of entries of 2, 4 or 8 bytes.
void masking_keep(int parts, void *const *values, const uint8_t *const *masks, const long *lengths, int bytes,
                  int outside, int threads) {
  if (bytes == 2) keep_all<uint16_t>(parts, values, masks, lengths, outside, threads);
  else if (bytes == 4) keep_all<uint32_t>(parts, values, masks, lengths, outside, threads);
  else keep_all<uint64_t>(parts, values, masks, lengths, outside, threads);
}
}
