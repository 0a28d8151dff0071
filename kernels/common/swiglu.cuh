// The activation between the GEMMs.
#pragma once
#include "../params.h"

namespace nvfp4 {

// gate = min(gate, limit); up = clamp(up, -limit, limit); gate * sigmoid(alpha * gate) * (up + beta). Comparisons, not
// fminf: a NaN must stay.
__device__ inline float swiglu(const SwigluParams& p, float gate, float up) {
  gate = gate > p.limit ? p.limit : gate;
  up = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
  return gate / (1.0f + __expf(-p.alpha * gate)) * (up + p.beta);
}

}  // namespace nvfp4
