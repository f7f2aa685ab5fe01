// Cutting (tile, output) work into shares at any fraction, so that neighbours agree on every cut.
#pragma once
#include "stream.h"

struct Cut {
  long item;
  int output;
  Cut(long items, double share, const Stream &stream) {
    const double at = share * items;
    item = (long)(at + 1e-6);
    double rest = at - item;
    if (rest > .96) item++, rest = 0;
    output = rest < .04 || item >= items ? 0 : stream.output_at(rest);
    if (output == stream.outputs) item++, output = 0;
  }
};

// Call work(item, first output, last output) for all that lies between two cuts.
template <class Work>
static void between(long items, double from, double to, const Stream &stream, Work work) {
  const Cut a(items, from, stream), b(items, to, stream);
  for (long i = a.item; i < items && i <= b.item; i++) {
    int first = i == a.item ? a.output : 0, last = i == b.item ? b.output : stream.outputs;
    if (first < last) work(i, first, last);
  }
}
