// compress_qconv2d: images convolved with packed codes.
#include "common/status.h"
#include "qconv2d/code_rows.h"
#include "qconv2d/convolution.h"
#include "tile/dispatch.h"

extern "C" {

compress_status compress_qconv2d(const float* x, const compress_geometry* geometry, const compress_weight* weight,
                                 const compress_options* options, float* y, const compress_runner* runner,
                                 char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!geometry || !weight || !options || ((!x || !y) && geometry->batch > 0))
      compress::fail(COMPRESS_INVALID, "a null argument");
    compress::CodeRows rows(*weight);
    const compress::Geometry sizes(*geometry, weight->n, weight->k);
    compress::check_convolution(sizes, rows, *options);
    rows.read(runner);
    compress::convolution(compress::tile(), x, sizes, rows, *options, y, runner);
  });
}

compress_status compress_qconv2d_supported(const compress_geometry* geometry, const compress_weight* weight,
                                           const compress_options* options, char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!geometry || !weight || !options) compress::fail(COMPRESS_INVALID, "a null argument");
    const compress::CodeRows rows(*weight);
    compress::check_convolution(compress::Geometry(*geometry, weight->n, weight->k), rows, *options);
  });
}

}  // extern "C"
