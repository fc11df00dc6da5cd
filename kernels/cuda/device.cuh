// The GPU part of common.cuh: 16-bit types, asynchronous copies and tensor-core instructions, as inline PTX.
//
// It includes no CUDA header, so NVRTC needs none. This is the only code that the tests cannot run without a GPU.
// tests/test_unit_kernels.py has a unit test for each function. It runs on a GPU if CuPy finds one.
//
// PTX: NVIDIA, "Parallel Thread Execution ISA", https://docs.nvidia.com/cuda/parallel-thread-execution/
#pragma once

#define DEVICE __device__ __forceinline__
// Declares `name`: the shared memory whose size is an argument of the launch.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define INFINITE __int_as_float(0x7f800000)

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
DEVICE float to_float(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

// Returns the nearest number of type T, ties to even.
template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE float16 from_float<float16>(float x) {
  float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#if __CUDA_ARCH__ >= 800
template <>
DEVICE bfloat16 from_float<bfloat16>(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#endif

// Packs two numbers into one register, `low` in the lower half.
template <class T>
DEVICE unsigned pack(float low, float high) {
  return (unsigned)from_float<T>(low).bits | (unsigned)from_float<T>(high).bits << 16;
}
#if __CUDA_ARCH__ >= 800
template <>
DEVICE unsigned pack<float16>(float low, float high) {
  unsigned y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
DEVICE unsigned pack<bfloat16>(float low, float high) {
  unsigned y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
#endif

// Unpacks the two numbers of a register from `pack`.
template <class T>
DEVICE void unpack(unsigned both, float& low, float& high) {
  low = to_float(T{(unsigned short)(both & 0xffff)});
  high = to_float(T{(unsigned short)(both >> 16)});
}

// Writes a register from `pack` as two consecutive numbers. The address is a multiple of 4 bytes.
template <class T>
DEVICE void store_pair(T* to, unsigned both) {
  *reinterpret_cast<unsigned*>(to) = both;
}

// Starts to copy 16 bytes from global to shared memory. Both addresses are multiples of 16 bytes. On Turing, it is a
// synchronous copy.
DEVICE void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(global);
#endif
}

// The same if `copies`; else it starts to fill the 16 bytes with zeros, and reads nothing.
DEVICE void copy_or_zero_async(void* shared, const void* global, bool copies) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  const int bytes = copies ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
  *reinterpret_cast<uint4*>(shared) = copies ? *reinterpret_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}

// Ends a group: all copies that this thread has started since the last group.
DEVICE void end_copy_group() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all copy groups of this thread are complete, except the last N.
template <int N>
DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Loads four 8x8 matrices of 16-bit numbers from shared memory into the fragments of a warp. Lane l passes the address
// of row l % 8 of matrix l / 8. It receives the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of each matrix.
DEVICE void load_matrices(unsigned (&fragments)[4], const void* row) {
  const unsigned from = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(from)
               : "memory");
}

// The same, with each matrix transposed.
DEVICE void load_matrices_transposed(unsigned (&fragments)[4], const void* row) {
  const unsigned from = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(from)
               : "memory");
}

// C += A B with the tensor cores, for one warp: A 16x16, B 16x8, C 16x8, in the fragments of mma.m16n8k16.
template <class T>
DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
DEVICE void multiply_add<float16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // Turing has only m16n8k8; two of its fragments are one fragment of m16n8k16
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
#if __CUDA_ARCH__ >= 800
template <>
DEVICE void multiply_add<bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Returns 2 to the power of x, with a relative error of about 2^-22.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Returns 1 / x, with a relative error of about 2^-23.
DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
