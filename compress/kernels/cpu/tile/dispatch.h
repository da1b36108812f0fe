// Which tile this process computes with.
#pragma once

#include <vector>

#include "tile/tile.h"

namespace compress {

// The tiles that this CPU and its operating system run, best first; the last is the scalar one.
const std::vector<const Tile*>& available_tiles();

// The tile in use: at first the best, or the one that the environment variable COMPRESS_KERNEL names if it is
// available.
const Tile& tile();

// Makes all later calls use the named tile; false, and no change, when it is not available. Calls that are running
// keep the tile they began with.
bool use_tile(const char* name);

}  // namespace compress
