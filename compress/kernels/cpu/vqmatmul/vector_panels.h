// Panels of vector codes.
#pragma once

#include "common/panels.h"
#include "vqmatmul/codebook.h"

namespace compress {

class VectorPanels : public Panels {
 public:
  VectorPanels(const compress_vectors& weight, const Tile& tile);  // throws Failure

  bool scaled(int64_t) const override { return false; }
  void expand(int64_t first, int64_t k0, PanelScratch& scratch) const override;
  bool factors(int64_t first, float* scale, int32_t* zero) const override;
  void prefetch(int64_t first, int64_t k0, int part, int parts) const override;

 private:
  Codebook book_;
  const Tile& tile_;
};

}  // namespace compress
