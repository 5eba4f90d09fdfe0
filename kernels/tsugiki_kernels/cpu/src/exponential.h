// The exponential of sixteen lanes.
#pragma once

#include <initializer_list>

#include "simd.h"

namespace tsugiki {

// e^x for x <= 87: Cody-Waite reduction, degree-6 polynomial, about 1 ulp; below -87 it stays at
// e^-87. exp(0) is exactly 1, which a rescale by an unchanged maximum relies on.
inline Floats exp_of(Floats x) {
  x = max(x, splat(-87.0f));
  const Floats n = round_to_whole(x * splat(1.44269504f));
  Floats r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                  5.0000001201e-1f})
    p = fma(p, r, splat(c));
  p = fma(p * r, r, r) + splat(1.0f);
  return p * power_of_two(n);
}

}  // namespace tsugiki
