// Compares the selection by magnitude with a stable sort, without Python: for processors that only an emulator has.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "selection.cpp"

static std::mt19937 generator(0);

static bool equal(long length, long part, double share, bool outside, bool largest, int values) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(length);
    std::vector<uint8_t> mask(length), chosen(length, 7);
    std::vector<long> order;
    for (long i = 0; i < length; i++) {
        numbers[i] = values ? float(int(generator() % unsigned(2 * values)) - values) : normal(generator);
        mask[i] = generator() % 4 == 0;
        if (mask[i] != outside) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](long a, long b) {
        const float first = std::abs(numbers[a]), second = std::abs(numbers[b]);
        return largest ? first > second : first < second;
    });
    const long count = std::max(1L, long(share * double(order.size())));
    const float *scores[] = {numbers.data(), numbers.data() + part};
    const uint8_t *masks[] = {mask.data(), mask.data() + part};
    uint8_t *chosens[] = {chosen.data(), chosen.data() + part};
    const long lengths[] = {part, length - part};
    if (selection_run(2, scores, masks, chosens, lengths, outside, count, largest, 2)) return false;
    std::vector<uint8_t> expected(length);
    for (long i = 0; i < count; i++) expected[order[i]] = 1;
    return chosen == expected;
}

int main() {
    int right = 0, all = 0;
    for (long length : {70001L, 400000L})
        for (double share : {.001, .3, 1.})
            for (int outside : {0, 1})
                for (int largest : {0, 1})
                    for (int values : {0, 5000}) {
                        all++;
                        right += equal(length, length / 3, share, outside, largest, values);
                    }
    std::printf(right == all ? "%d cases equal\n" : "%d cases of %d equal\n", right, all);
    return right != all;
}
