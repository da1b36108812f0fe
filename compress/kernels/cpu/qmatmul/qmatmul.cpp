// compress_qmatmul: rows times packed codes.
#include "common/options.h"
#include "common/product.h"
#include "common/status.h"
#include "qmatmul/code_panels.h"
#include "tile/dispatch.h"

namespace compress {
namespace {

compress_status run(const float* x, int64_t rows, const compress_weight* weight, const compress_options* options,
                    float* y, const compress_runner* runner, double* seconds, char* message, size_t message_size) {
  return reported(message, message_size, [&] {
    if (!weight || !options || rows < 0 || ((!x || !y) && rows)) fail(COMPRESS_INVALID, "a null argument");
    check_options(*options, weight->k);
    const Tile& t = tile();
    CodePanels panels(*weight, t);
    panels.read(runner);
    product(t, x, rows, panels, *options, y, runner, seconds);
  });
}

}  // namespace
}  // namespace compress

extern "C" {

compress_status compress_qmatmul(const float* x, int64_t rows, const compress_weight* weight,
                                 const compress_options* options, float* y, const compress_runner* runner,
                                 char* message, size_t message_size) {
  return compress::run(x, rows, weight, options, y, runner, nullptr, message, message_size);
}

compress_status compress_time_qmatmul(const float* x, int64_t rows, const compress_weight* weight,
                                      const compress_options* options, float* y, const compress_runner* runner,
                                      double* seconds, char* message, size_t message_size) {
  return compress::run(x, rows, weight, options, y, runner, seconds, message, message_size);
}

compress_status compress_qmatmul_supported(const compress_weight* weight, const compress_options* options,
                                           char* message, size_t message_size) {
  return compress::reported(message, message_size, [&] {
    if (!weight || !options) compress::fail(COMPRESS_INVALID, "a null argument");
    compress::check_options(*options, weight->k);
    const compress::CodePanels panels(*weight, compress::tile());
  });
}

}  // extern "C"
