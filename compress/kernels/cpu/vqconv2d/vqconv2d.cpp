// compress_vqconv2d: images convolved with vector-quantized weights.
#include "common/status.h"
#include "common/weight_rows.h"
#include "qconv2d/convolution.h"
#include "tile/dispatch.h"
#include "vqmatmul/codebook.h"

namespace compress {
namespace {

class VectorRows : public WeightRows {
 public:
  explicit VectorRows(const compress_vectors& weight) : book_(weight, 0) {
    n_ = weight.n;
    k_ = weight.k;
  }

  bool scaled(int64_t) const override { return false; }

  void decode(int64_t channel, int8_t* values, float* scales) const override {
    book_.decode(channel, 0, k_, reinterpret_cast<uint8_t*>(values));
    scales[0] = book_.scale(channel);
  }

 private:
  Codebook book_;
};

}  // namespace
}  // namespace compress

extern "C" {

compress_status compress_vqconv2d(const float* x, const compress_geometry* geometry, const compress_vectors* weight,
                                  const compress_options* options, float* y, const compress_runner* runner,
                                  char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!geometry || !weight || !options || ((!x || !y) && geometry->batch > 0))
      compress::fail(COMPRESS_INVALID, "a null argument");
    const compress::VectorRows rows(*weight);
    const compress::Geometry sizes(*geometry, weight->n, weight->k);
    compress::check_convolution(sizes, rows, *options);
    compress::convolution(compress::tile(), x, sizes, rows, *options, y, runner);
  });
}

compress_status compress_vqconv2d_supported(const compress_geometry* geometry, const compress_vectors* weight,
                                            const compress_options* options, char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!geometry || !weight || !options) compress::fail(COMPRESS_INVALID, "a null argument");
    const compress::VectorRows rows(*weight);
    compress::check_convolution(compress::Geometry(*geometry, weight->n, weight->k), rows, *options);
  });
}

}  // extern "C"
