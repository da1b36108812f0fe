// Panels of packed codes.
#pragma once

#include "common/panels.h"
#include "common/weight_codes.h"

namespace compress {

class CodePanels : public Panels {
 public:
  // Throws Failure when the weight is malformed or cannot be computed.
  CodePanels(const compress_weight& weight, const Tile& tile);
  // Before the panels are used; reads data. Throws Failure when zero points are no codes.
  void read(const compress_runner* runner) { codes_.read(runner); }

  bool scaled(int64_t first) const override;
  void expand(int64_t first, int64_t k0, PanelScratch& scratch) const override;
  bool factors(int64_t first, float* scale, int32_t* zero) const override;
  void prefetch(int64_t first, int64_t k0, int part, int parts) const override;
  bool stream(Stream& stream) const override;
  float unit() const override { return codes_.unit(); }

 private:
  void expand_four_bits(int64_t first, int64_t k0, int64_t length, PanelScratch& scratch) const;
  void expand_more_bits(int64_t first, int64_t k0, int64_t length, PanelScratch& scratch) const;
  int write_tables(int64_t first, int64_t k0, int64_t length, uint8_t* tables) const;
  void write_scales(int64_t first, int64_t k0, int64_t length, float* scales) const;
  void fill_table(int64_t channel, int64_t block, float* values) const;

  WeightCodes codes_;
  const Tile& tile_;
  uint8_t table_[16] = {};  // value + 128 of every code, where one table serves all
};

}  // namespace compress
