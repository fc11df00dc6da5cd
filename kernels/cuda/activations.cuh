// The activation functions of `hidden_act`. minibert.ops has their definitions, with the same names.
#pragma once
#include "common.cuh"

DEVICE float clip(float x, float least, float most) { return fminf(fmaxf(x, least), most); }

DEVICE float sigmoid(float x) {
  const float z = expf(-fabsf(x));  // no overflow at large negative x
  return (x < 0 ? z : 1.f) / (1.f + z);
}

DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

DEVICE float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678f)); }

DEVICE float gelu_tanh(float x, float root) {
  return 0.5f * x * (1.f + tanhf(root * (x + 0.044715f * x * x * x)));
}

// Each activation is a struct, so that it can be a template argument of a kernel. EXACT is false if the result is
// rounded to 16 bits. Then an approximation is enough if its error is smaller than the rounding error.
struct Gelu {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    if constexpr (EXACT) return gelu(x);
    // x Phi(x), where an odd polynomial approximates log(Phi(x) / Phi(-x)). tools/fit_gelu_logit.py computes the
    // coefficients and prints the error: at most 2.6e-5. The polynomial is not valid beyond |x| = 6: hence the clip.
    const float square = fminf(x * x, 36.f);
    const float logit = x * ((GELU_LOGIT_5 * square + GELU_LOGIT_3) * square + GELU_LOGIT_1);
    return x * reciprocal_fast(1.f + exp2_fast(-1.44269504f * logit));
  }
  static constexpr float GELU_LOGIT_1 = 1.5950158f, GELU_LOGIT_3 = 0.074011293f, GELU_LOGIT_5 = -0.00070303375f;
};
struct Gelu10 {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return clip(gelu(x), -10.f, 10.f);
  }
};
struct GeluTanh {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return gelu_tanh(x, 0.79788456f);
  }
};
struct HardSwish {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return x * clip(x + 3.f, 0.f, 6.f) / 6.f;
  }
};
struct Identity {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return x;
  }
};
struct Laplace {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return 0.5f * (1.f + erff((x - 0.707107f) / (0.282095f * 1.41421356f)));
  }
};
struct LeakyRelu {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return x > 0 ? x : 0.01f * x;
  }
};
struct Mish {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return x * tanhf(softplus(x));
  }
};
struct QuickGelu {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return x * sigmoid(1.702f * x);
  }
};
struct Relu {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return fmaxf(x, 0.f);
  }
};
struct Relu6 {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return clip(x, 0.f, 6.f);
  }
};
struct ReluSquared {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return fmaxf(x, 0.f) * fmaxf(x, 0.f);
  }
};
struct Sigmoid {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return sigmoid(x);
  }
};
struct Silu {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return x * sigmoid(x);
  }
};
struct SqrtSoftplus {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return sqrtf(softplus(x));
  }
};
struct Tanh {
  template <bool EXACT>
  static DEVICE float apply(float x) {
    return tanhf(x);
  }
};
