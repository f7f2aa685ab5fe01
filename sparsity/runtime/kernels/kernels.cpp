// Sparse CPU kernels of the runtime: one translation unit, plain C interface, no dependency but the C++17 library.
#include "conv.h"
#include "elementwise.h"
#include "plan.h"
#include "pointwise.h"
#include "pooling.h"
#include "rows.h"

static InputAffine affine_of(const float *scale, const float *shift, int relu, int channels) {
  InputAffine a;
  a.relu = relu;
  if (scale || shift) {
    a.scale.assign(channels, 1.f), a.shift.assign(channels, 0.f);
    if (scale) a.scale.assign(scale, scale + channels);
    if (shift) a.shift.assign(shift, shift + channels);
  }
  return a;
}

template <class T>
static int append(Plan *plan, std::unique_ptr<T> step, std::vector<int> reads, int target, int residual = -1) {
  step->reads = std::move(reads), step->target = target;
  if (residual >= 0) step->reads.push_back(residual);
  return plan->add_step(std::move(step));
}

// A C caller cannot catch: return `failed` instead, which only running out of memory causes.
template <class Call>
static auto guarded(Call call, decltype(call()) failed) noexcept {
  try {
    return call();
  } catch (...) {
    return failed;
  }
}

extern "C" {
int sparsity_version() { return 1; }
int sparsity_vector_bytes() { return VECTOR_BYTES; }
void sparsity_use_openmp(void *parallel, void *num_threads, void *thread_num) {
  use_openmp(parallel, num_threads, thread_num);
}

Plan *plan_new() {
  return guarded([] { return new Plan; }, nullptr);
}
void plan_free(Plan *plan) { delete plan; }
int plan_buffer(Plan *plan, size_t floats) {
  return guarded([&] { return plan->add_buffer(floats); }, -1);
}
void plan_place(Plan *plan, int buffer, size_t offset) { plan->place(buffer, offset); }

int plan_conv2d(Plan *plan, int source, int target, int residual, const int *window, const float *weight,
                const float *bias, const float *scale, const float *shift, int relu, int activation) {
  return guarded(
      [&] {
        const int *n = window;
        const Window w{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9]};
        InputAffine affine = affine_of(scale, shift, relu, w.inputs);
        const Epilogue epilogue{activation, residual};
        if (w.taps() == 1 && w.sy == 1 && w.sx == 1 && !w.py && !w.px)
          return append(
              plan,
              std::make_unique<Pointwise>(w.inputs, w.outputs, w.height * w.width, 1, weight, bias, affine, epilogue),
              {source}, target, residual);
        const double nonzeros = (double)count_nonzeros(weight, (size_t)w.outputs * w.inputs * w.taps());
        const Layout layout = choose_layout(w, nonzeros, MAX_VECTORS);
        return append(plan, std::make_unique<Conv>(w, layout, weight, bias, affine, epilogue), {source}, target,
                      residual);
      },
      -1);
}

int plan_linear(Plan *plan, int source, int target, int residual, int inputs, int outputs, int rows,
                const float *weight, const float *bias, const float *scale, const float *shift, int relu,
                int activation) {
  return guarded(
      [&] {
        return append(
            plan,
            std::make_unique<Pointwise>(inputs, outputs, 1, rows, weight, bias, affine_of(scale, shift, relu, inputs),
                                        Epilogue{activation, residual}),
            {source}, target, residual);
      },
      -1);
}

int plan_affine(Plan *plan, int source, int target, int channels, long inner, const float *scale, const float *shift,
                int relu) {
  return guarded(
      [&] {
        auto step = inner == 1 ? std::make_unique<RowAffineStep>() : std::make_unique<AffineStep>();
        step->channels = channels, step->inner = inner, step->affine = affine_of(scale, shift, relu, channels);
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_add(Plan *plan, const int *sources, int count, int target, long floats, float scale, int activation) {
  return guarded(
      [&] {
        auto step = std::make_unique<AddStep>();
        step->floats = floats, step->scale = scale, step->activation = activation;
        return append(plan, std::move(step), std::vector<int>(sources, sources + count), target);
      },
      -1);
}

int plan_mean(Plan *plan, int source, int target, int channels, long inner, const float *scale, const float *shift,
              int relu) {
  return guarded(
      [&] {
        auto step = std::make_unique<MeanStep>();
        step->channels = channels, step->inner = inner, step->affine = affine_of(scale, shift, relu, channels);
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_pool2d(Plan *plan, int source, int target, const int *window, int out_height, int out_width, int average,
                int count_padding) {
  return guarded(
      [&] {
        const int *n = window;
        auto step = std::make_unique<PoolStep>();
        step->w = Window{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9]};
        step->out_height = out_height, step->out_width = out_width, step->average = average,
        step->count_padding = count_padding;
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_activation(Plan *plan, int source, int target, long floats, int activation) {
  return guarded(
      [&] {
        auto step = std::make_unique<ActivationStep>();
        step->floats = floats, step->activation = activation;
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_multiply(Plan *plan, int first, int second, int target, long floats, int activation) {
  return guarded(
      [&] {
        auto step = std::make_unique<MultiplyStep>();
        step->floats = floats, step->activation = activation;
        return append(plan, std::move(step), {first, second}, target);
      },
      -1);
}

int plan_norm(Plan *plan, int source, int target, int rows, int features, const float *weight, const float *bias,
              float eps, int centred) {
  return guarded(
      [&] {
        auto step = std::make_unique<NormStep>();
        step->rows = rows, step->features = features, step->eps = eps, step->centred = centred;
        if (weight) step->weight.assign(weight, weight + features);
        if (bias) step->bias.assign(bias, bias + features);
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_channel_norm(Plan *plan, int source, int target, int channels, long inner, const float *weight,
                      const float *bias, float eps) {
  return guarded(
      [&] {
        auto step = std::make_unique<ChannelNormStep>();
        step->channels = channels, step->inner = inner, step->eps = eps;
        if (weight) step->weight.assign(weight, weight + channels);
        if (bias) step->bias.assign(bias, bias + channels);
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_transpose(Plan *plan, int source, int target, long rows, long columns) {
  return guarded(
      [&] {
        auto step = std::make_unique<TransposeStep>();
        step->rows = rows, step->columns = columns;
        return append(plan, std::move(step), {source}, target);
      },
      -1);
}

int plan_finish(Plan *plan, const int *inputs, int input_count, const int *outputs, int output_count, size_t arena) {
  return guarded(
      [&] {
        plan->finish({inputs, inputs + input_count}, {outputs, outputs + output_count}, arena);
        return 0;
      },
      -1);
}

int plan_run(Plan *plan, const float *const *inputs, float *const *outputs, long samples, int threads,
             double *seconds) {
  return guarded(
      [&] {
        plan->run(inputs, outputs, samples, threads, seconds);
        return 0;
      },
      -1);
}

// Rebuild the dense weight of a layer, [outputs, inputs, taps], into zeroed memory.
void plan_step_weight(Plan *plan, int step, float *weight) { plan->step(step).weight(weight); }
size_t plan_step_bytes(Plan *plan, int step) { return plan->step(step).bytes(); }
size_t plan_step_nonzeros(Plan *plan, int step) { return plan->step(step).nonzeros(); }
}
