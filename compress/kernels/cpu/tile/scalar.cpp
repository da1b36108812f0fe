// Portable C++: for CPUs without a tile of their own, and to compare the others with.
#include "tile/portable.h"

namespace compress {
namespace {

constexpr int kRows = 4;

using Products = portable::Products<kRows, 0>;

}  // namespace

extern const Tile scalar_tile = {
    "scalar",
    kRows,
    0,
    Products::multiply,
    Products::multiply_scaled,
    Products::multiply_row_scaled,
    portable::largest,
    portable::encode,
    portable::expand_nibbles,
    portable::expand_bytes,
    portable::fold_tables<0>,
    portable::expand_vectors,
    portable::interleave<0>,
    portable::finish,
    portable::finish_float,
    portable::accumulate,
    portable::add_scaled,
    nullptr,  // few rows go the way of many
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace compress
