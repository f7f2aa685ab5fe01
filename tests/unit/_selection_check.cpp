// Compares the selection by magnitude with a stable sort, without Python: for processors that only an emulator has.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "selection.cpp"

static std::mt19937 generator(0);

// The first entries in the order of magnitude of those where the mask is 1 (or, outside, 0).
static std::vector<long> expected(const std::vector<float> &numbers, const std::vector<uint8_t> &mask, int outside,
                                  int largest, double share) {
    std::vector<long> order;
    for (long i = 0; i < long(mask.size()); i++)
        if ((mask[i] != 0) != (outside != 0)) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](long a, long b) {
        const float first = std::abs(numbers[a]), second = std::abs(numbers[b]);
        return largest ? first > second : first < second;
    });
    order.resize(std::max(1L, long(share * double(order.size()))));
    return order;
}

static bool equal(long length, long part, double share, int outside, int largest, int values) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(length);
    std::vector<uint8_t> mask(length), found(2 * length, 7), wanted(2 * length);
    for (long i = 0; i < length; i++) {
        numbers[i] = values ? float(int(generator() % unsigned(2 * values)) - values) : normal(generator);
        mask[i] = generator() % 4 == 0;
    }
    // Once as two parts of one selection, and once more as another that shares its bytes with one of all other entries.
    const auto once = expected(numbers, mask, outside, largest, share);
    const auto others = expected(numbers, mask, !outside, !largest, share);
    for (long i : once) wanted[i] = wanted[length + i] = 1;
    for (long i : others) wanted[length + i] = 1;
    const float *first = numbers.data(), *scores[] = {first, first + part, first, first};
    const uint8_t *from = mask.data(), *masks[] = {from, from + part, from, from};
    uint8_t *to = found.data(), *chosen[] = {to, to + part, to + length, to + length};
    const long lengths[] = {part, length - part, length, length};
    const long counts[] = {long(once.size()), long(once.size()), long(others.size())};
    const int parts[] = {2, 1, 1}, outsides[] = {outside, outside, !outside}, largests[] = {largest, largest, !largest};
    int failed[] = {7, 7, 7};
    selection_run(3, parts, counts, outsides, largests, scores, masks, chosen, lengths, to, 2 * length, failed, 2);
    return !failed[0] && !failed[1] && !failed[2] && found == wanted;
}

int main() {
    int right = 0, all = 0;
    for (long length : {70001L, 400000L})
        for (double share : {.001, .3, 1.})
            for (int outside : {0, 1})
                for (int largest : {0, 1})
                    for (int values : {0, 5000, 1}) {
                        all++;
                        right += equal(length, length / 3, share, outside, largest, values);
                    }
    std::printf(right == all ? "%d cases equal\n" : "%d cases of %d equal\n", right, all);
    return right != all;
}
