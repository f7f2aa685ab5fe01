// Compares the kernels with plain loops in double precision, without Python: for processors that only an emulator has.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels.cpp"

static std::mt19937 generator(0);

static std::vector<float> random_floats(size_t count, double density = 1) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<float> values(count);
    for (float& value : values) value = uniform(generator) < density ? normal(generator) : 0.0f;
    return values;
}

static double worst(const std::vector<float>& got, const std::vector<double>& expected) {
    double error = 0, largest = 0;
    for (size_t i = 0; i < got.size(); i++) {
        if (!(std::abs(got[i] - expected[i]) <= error)) error = std::abs(got[i] - expected[i]);
        largest = std::max(largest, std::abs(expected[i]));
    }
    return error / (largest > 0 ? largest : 1);
}

// A convolution with bias, a residual sum and ReLU on two threads.
static double conv(int ci, int co, int h, int w, int k, int stride, int pad, double density, int samples) {
    int oh = (h + 2 * pad - k) / stride + 1, ow = (w + 2 * pad - k) / stride + 1;
    auto weight = random_floats(size_t(co) * ci * k * k, density), bias = random_floats(co);
    auto x = random_floats(size_t(samples) * ci * h * w), residual = random_floats(size_t(samples) * co * oh * ow);
    std::vector<float> y(residual.size(), NAN);
    auto plan = plan_new();
    int source = plan_buffer(plan, size_t(ci) * h * w), added = plan_buffer(plan, size_t(co) * oh * ow);
    int target = plan_buffer(plan, size_t(co) * oh * ow);
    int window[] = {ci, co, h, w, k, k, stride, stride, pad, pad};
    plan_conv2d(plan, source, target, added, window, weight.data(), bias.data(), nullptr, nullptr, 0, 1);
    int inputs[] = {source, added}, outputs[] = {target};
    plan_finish(plan, inputs, 2, outputs, 1, 0);
    const float* in[] = {x.data(), residual.data()};
    float* out[] = {y.data()};
    if (plan_run(plan, in, out, samples, 2, nullptr)) return INFINITY;
    plan_free(plan);
    std::vector<double> expected(y.size());
    for (int n = 0; n < samples; n++)
        for (int o = 0; o < co; o++)
            for (int i = 0; i < oh; i++)
                for (int j = 0; j < ow; j++) {
                    size_t place = ((size_t(n) * co + o) * oh + i) * ow + j;
                    double sum = double(bias[o]) + residual[place];
                    for (int c = 0; c < ci; c++)
                        for (int a = 0; a < k; a++)
                            for (int b = 0; b < k; b++) {
                                int r = i * stride + a - pad, s = j * stride + b - pad;
                                if (r < 0 || s < 0 || r >= h || s >= w) continue;
                                sum += double(weight[((size_t(o) * ci + c) * k + a) * k + b]) *
                                       x[((size_t(n) * ci + c) * h + r) * w + s];
                            }
                    expected[place] = std::max(sum, 0.0);
                }
    return worst(y, expected);
}

static double linear(int k, int m, double density, int samples) {
    auto weight = random_floats(size_t(m) * k, density), bias = random_floats(m), x = random_floats(size_t(samples) * k);
    std::vector<float> y(size_t(samples) * m, NAN);
    auto plan = plan_new();
    int source = plan_buffer(plan, k), target = plan_buffer(plan, m);
    plan_linear(plan, source, target, -1, k, m, 1, weight.data(), bias.data(), nullptr, nullptr, 0, 0);
    int inputs[] = {source}, outputs[] = {target};
    plan_finish(plan, inputs, 1, outputs, 1, 0);
    const float* in[] = {x.data()};
    float* out[] = {y.data()};
    if (plan_run(plan, in, out, samples, 2, nullptr)) return INFINITY;
    plan_free(plan);
    std::vector<double> expected(y.size());
    for (int n = 0; n < samples; n++)
        for (int o = 0; o < m; o++) {
            double sum = bias[o];
            for (int i = 0; i < k; i++) sum += double(weight[size_t(o) * k + i]) * x[size_t(n) * k + i];
            expected[size_t(n) * m + o] = sum;
        }
    return worst(y, expected);
}

int main() {
    double error = 0;
    int cases = 0;
    auto note = [&](double found) {
        cases++;
        if (!(found <= error)) error = found;
    };
    for (double density : {0.0, 0.02, 0.2, 1.0}) {
        for (int samples : {1, 3}) {
            note(conv(5, 7, 9, 11, 3, 1, 1, density, samples));
            note(conv(16, 24, 8, 8, 3, 2, 1, density, samples));
            note(conv(12, 40, 14, 14, 1, 1, 0, density, samples));
            note(conv(3, 8, 17, 13, 7, 2, 3, density, samples));
            note(conv(33, 9, 4, 4, 3, 1, 1, density, samples));
        }
        for (int samples : {1, 2, 5, 40}) note(linear(130, 71, density, samples)), note(linear(64, 300, density, samples));
    }
    std::printf("%d-byte vectors, %d cases, largest relative error %.2g\n", sparsity_vector_bytes(), cases, error);
    return error < 1e-5 ? 0 : 1;
}
