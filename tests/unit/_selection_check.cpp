// Compares the selection by magnitude with a stable sort, without Python: for processors that only an emulator has.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "selection.cpp"

static std::mt19937 generator(0);

static bool equal(long length, long part, double share, int outside, int largest, int values) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(length);
    std::vector<uint8_t> mask(length), twice(2 * length, 7);
    std::vector<long> order;
    for (long i = 0; i < length; i++) {
        numbers[i] = values ? float(int(generator() % unsigned(2 * values)) - values) : normal(generator);
        mask[i] = generator() % 4 == 0;
        if ((mask[i] != 0) != (outside != 0)) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](long a, long b) {
        const float first = std::abs(numbers[a]), second = std::abs(numbers[b]);
        return largest ? first > second : first < second;
    });
    const long count = std::max(1L, long(share * double(order.size())));
    // Once as two parts of one selection, and once more as another.
    const float *scores[] = {numbers.data(), numbers.data() + part, numbers.data()};
    const uint8_t *masks[] = {mask.data(), mask.data() + part, mask.data()};
    uint8_t *chosen[] = {twice.data(), twice.data() + part, twice.data() + length};
    const long lengths[] = {part, length - part, length}, counts[] = {count, count};
    const int parts[] = {2, 1}, outsides[] = {outside, outside}, largests[] = {largest, largest};
    int failed[] = {7, 7};
    selection_run(2, parts, counts, outsides, largests, scores, masks, chosen, lengths, twice.data(), 2 * length, failed,
                  2);
    if (failed[0] || failed[1]) return false;
    std::vector<uint8_t> expected(2 * length);
    for (long i = 0; i < count; i++) expected[order[i]] = expected[length + order[i]] = 1;
    return twice == expected;
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
