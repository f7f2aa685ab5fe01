// Compares masking by bits with masking entry by entry, without Python: for processors that only an emulator has.
#include <cstdio>
#include <random>
#include <vector>

#include "masking.cpp"

static std::mt19937_64 generator(0);

template <class Bits>
static bool equal(long length, long part, int outside, bool zeros) {
    std::vector<Bits> values(length), expected(length);
    std::vector<uint8_t> mask(length);
    for (long i = 0; i < length; i++) {
        mask[i] = generator() % 5 == 0;
        const bool kept = (mask[i] != 0) != (outside != 0);
        values[i] = zeros && !kept ? 0 : Bits(generator());
        expected[i] = kept ? values[i] : 0;
    }
    void *tensors[] = {values.data(), values.data() + part};
    const uint8_t *masks[] = {mask.data(), mask.data() + part};
    const long lengths[] = {part, length - part};
    masking_keep(2, tensors, masks, lengths, sizeof(Bits), outside, 2);
    return values == expected;
}

int main() {
    int right = 0, all = 0;
    for (long length : {1L, 63L, 64L, 65536L, 200003L})
        for (int outside : {0, 1})
            for (bool zeros : {false, true}) {
                all += 3;
                right += equal<uint16_t>(length, length / 3, outside, zeros);
                right += equal<uint32_t>(length, length / 3, outside, zeros);
                right += equal<uint64_t>(length, length / 3, outside, zeros);
            }
    std::printf(right == all ? "%d cases equal\n" : "%d cases of %d equal\n", right, all);
    return right != all;
}
