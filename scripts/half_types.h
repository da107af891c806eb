// Read before every mlx-c source, and by bindgen, on x86-64 Linux: mlx-c defines its half types
// on Arm only, and GCC 12 has no <format>.
#pragma once
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
#ifdef __cplusplus
#include <version>
#ifndef __cpp_lib_format
#define FMT_HEADER_ONLY
#include <fmt/format.h>
#include <string>
namespace std {
template <typename... Args>
string format(fmt::format_string<Args...> pattern, Args&&... args) {
  return fmt::format(pattern, std::forward<Args>(args)...);
}
} // namespace std
#endif
#include <mlx/types/half_types.h>
using mlx::core::bfloat16_t;
using mlx::core::float16_t;
#else
#include <stdint.h>
typedef uint16_t float16_t;
typedef uint16_t bfloat16_t;
#endif
