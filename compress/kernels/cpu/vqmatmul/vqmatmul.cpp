// compress_vqmatmul: rows times vector-quantized weights.
#include "common/options.h"
#include "common/product.h"
#include "common/status.h"
#include "tile/dispatch.h"
#include "vqmatmul/vector_panels.h"

extern "C" {

compress_status compress_vqmatmul(const float* x, int64_t rows, const compress_vectors* weight,
                                  const compress_options* options, float* y, const compress_runner* runner,
                                  char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!weight || !options || rows < 0 || ((!x || !y) && rows)) compress::fail(COMPRESS_INVALID, "a null argument");
    compress::check_options(*options, weight->k);
    const compress::Tile& t = compress::tile();
    const compress::VectorPanels panels(*weight, t);
    compress::product(t, x, rows, panels, *options, y, runner, nullptr);
  });
}

compress_status compress_vqmatmul_supported(const compress_vectors* weight, const compress_options* options,
                                            char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!weight || !options) compress::fail(COMPRESS_INVALID, "a null argument");
    compress::check_options(*options, weight->k);
    const compress::VectorPanels panels(*weight, compress::tile());
  });
}

}  // extern "C"
