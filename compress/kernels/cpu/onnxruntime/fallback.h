// Every valid call of the operator table in float32, for those that the integer kernels do not compute.
#pragma once

#include "include/compress_kernels.h"
#include "onnxruntime/formats.h"

namespace compress {

struct GeneralCall {
  const float* x;                    // [rows, k], or images
  int64_t rows;                      // of x; images of convolutions
  const compress_weight* weight;     // one of the two, the other null
  const compress_vectors* vectors;
  const compress_geometry* geometry;  // null: a matrix product
  const compress_options* options;   // all but what follows
  const ActivationFormat* format;    // instead of act_low, act_high and act_max
  int64_t act_group;                 // positions that share a scale; 0: a row has one
  int64_t act_scale_count;           // of act_scale: 1, or rows * groups of a row
  int64_t act_zero_count;
};

// The arithmetic of compress/kernels/reference.py and vq_reference.py up to the order of additions, which does not
// depend on the threads. Arguments must fit together. Throws bad_alloc, or Failure for folding above 6 bits.
void compute_in_float(const GeneralCall& call, float* y, const compress_runner* runner);

}  // namespace compress
