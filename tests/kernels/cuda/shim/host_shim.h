// CUDA C++ as plain C++: what prelude.cuh includes in place of the device's instructions.
#pragma once

#include <cstdint>

#include "block.h"
#include "host_types.h"

#define __global__
#define __device__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define DEVICE inline

#define threadIdx (shim::current->thread)
#define blockIdx (shim::current->block)
#define blockDim (shim::current->block_size)
#define gridDim (shim::current->grid)

#define SHARED_ARRAY(T, name, count)  \
  static const char name##_key = 0;   \
  T* const name = static_cast<T*>(shim::shared_array(&name##_key, sizeof(T) * (count)))
#define DYN_SHARED(T, name) T* const name = static_cast<T*>(shim::dynamic_shared())

#include "host_functions.h"
#include "host_warp.h"
#include "host_instructions.h"
