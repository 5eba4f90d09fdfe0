// The kernels of a library by name, with the types of their parameters, and how Python calls them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "block.h"

namespace shim {

struct Kernel {
  const char* name;
  std::string parameters;  // one letter each: p pointer, i 32 bits, l 64 bits, f float
  void (*call)(const Kernel& kernel, const uint64_t* values);
  void (*function)();
};

inline std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

template <class T>
constexpr char parameter_letter() {
  if constexpr (std::is_pointer_v<T>) return 'p';
  if constexpr (std::is_integral_v<T>) return sizeof(T) == 4 ? 'i' : 'l';
  static_assert(std::is_pointer_v<T> || std::is_same_v<T, float> ||
                    (std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)),
                "kernels take pointers, 32- and 64-bit integers and float");
  return 'f';
}

template <class T>
T parameter(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class... T, std::size_t... position>
void call_with(void (*function)(T...), const uint64_t* values,
               std::index_sequence<position...>) {
  function(parameter<T>(values[position])...);
}

// What a library's end defines, one for each kernel.
struct Registration {
  template <class... T>
  Registration(const char* name, void (*function)(T...)) {
    const auto call = [](const Kernel& kernel, const uint64_t* values) {
      call_with(reinterpret_cast<void (*)(T...)>(kernel.function), values,
                std::index_sequence_for<T...>{});
    };
    kernels().push_back({name, std::string{parameter_letter<T>()...}, call,
                         reinterpret_cast<void (*)()>(function)});
  }
};

}  // namespace shim

// Lines "name parameters".
extern "C" inline __attribute__((used, visibility("default"))) const char* shim_kernels() {
  static std::string lines;
  lines.clear();
  for (const shim::Kernel& kernel : shim::kernels())
    lines += std::string(kernel.name) + " " + kernel.parameters + "\n";
  return lines.c_str();
}

// Null, or what went wrong. values: one 64-bit word per parameter.
extern "C" inline __attribute__((used, visibility("default"))) const char* shim_launch(
    int32_t kernel, const uint32_t* grid, const uint32_t* block, const uint64_t* values,
    uint64_t shared_bytes, uint64_t shared_limit, int32_t order, uint64_t seed) {
  struct What {
    const shim::Kernel& kernel;
    const uint64_t* values;
  } const what{shim::kernels()[kernel], values};
  const auto run = [](const void* what) {
    const What& call = *static_cast<const What*>(what);
    call.kernel.call(call.kernel, call.values);
  };
  return shim::execute({{grid[0], grid[1], grid[2]},
                        {block[0], block[1], block[2]},
                        shared_bytes,
                        shared_limit,
                        order,
                        seed,
                        run,
                        &what});
}
