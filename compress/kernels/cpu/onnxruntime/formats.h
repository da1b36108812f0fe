// Number formats at the operators' edges: element types of tensors, and what activations are rounded to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace compress {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of_half(uint16_t half) {
  const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
  const float finite = from_bits(magnitude) * 0x1p112f;  // moves the exponent's bias; right for subnormals too
  const uint32_t bits = (half & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000u : to_bits(finite);
  return from_bits(bits | uint32_t(half & 0x8000) << 16);
}

// To nearest, half to even; what is too large becomes infinite.
inline uint16_t half_of_float(float value) {
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u)
    half = 0x7e00;
  else if (magnitude >= 0x47800000u)
    half = 0x7c00;
  else if (magnitude < 0x38800000u)  // a subnormal half: the addition rounds at its last place
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  else
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  return uint16_t(half | (bits >> 16 & 0x8000u));
}

// E4M3 without infinities (OCP 8-bit floating point, 2023).
inline float float_of_e4m3(uint8_t code) {
  const uint32_t magnitude = uint32_t(code & 0x7f) << 20;
  const uint32_t bits = (code & 0x7f) == 0x7f ? 0x7fc00000u : to_bits(from_bits(magnitude) * 0x1p120f);
  return from_bits(bits | uint32_t(code & 0x80) << 24);
}

// E8M0: 2^(code - 127), 255 is NaN (OCP Microscaling formats, 2023).
inline float float_of_e8m0(uint8_t code) {
  if (code == 255) return from_bits(0x7fc00000u);
  return from_bits(code ? uint32_t(code) << 23 : 0x00400000u);
}

// What activations are rounded to: nothing, integers from low to high, or a floating-point format of few bits.
struct ActivationFormat {
  enum Kind { kNone, kInteger, kFloat };
  const char* name;
  Kind kind;
  int low, high;
  float largest;          // what the largest magnitude of a row becomes
  int mantissa_bits;
  int smallest_exponent;  // of normal numbers
};

constexpr ActivationFormat kActivationFormats[] = {
    {"none", ActivationFormat::kNone, 0, 0, 0.0f, 0, 0},
    {"int8", ActivationFormat::kInteger, -128, 127, 127.0f, 0, 0},
    {"int6", ActivationFormat::kInteger, -32, 31, 31.0f, 0, 0},
    {"int4", ActivationFormat::kInteger, -8, 7, 7.0f, 0, 0},
    {"int3", ActivationFormat::kInteger, -4, 3, 3.0f, 0, 0},
    {"int2", ActivationFormat::kInteger, -2, 1, 1.0f, 0, 0},
    {"uint8", ActivationFormat::kInteger, 0, 255, 255.0f, 0, 0},
    {"uint4", ActivationFormat::kInteger, 0, 15, 15.0f, 0, 0},
    {"fp8_e4m3", ActivationFormat::kFloat, 0, 0, 448.0f, 3, -6},
    {"fp8_e5m2", ActivationFormat::kFloat, 0, 0, 57344.0f, 2, -14},
    {"fp4_e2m1", ActivationFormat::kFloat, 0, 0, 6.0f, 1, 0},
};

// Null when there is none of that name.
inline const ActivationFormat* find_activation_format(const char* name) {
  for (const ActivationFormat& format : kActivationFormats)
    if (!std::strcmp(format.name, name)) return &format;
  return nullptr;
}

}  // namespace compress
