// Runs CUDA C++ kernels on a CPU, for tests. It replaces device.cuh in kernels/cuda/common.cuh.
//
// Each CUDA thread is a fiber: it has its own stack, and fibers switch without the operating system. Blocks run one
// after the other. The lanes of a warp meet in each collective (shuffle, ldmatrix, mma). The last lane to arrive does
// the work for all, with the fragment layouts of the PTX manual. All threads of a block meet in __syncthreads.
//
// It is stricter than a GPU, so that tests find errors that a GPU may hide:
//
//   * shared memory is full of NaN when a block starts;
//   * copy_async fills its target with NaN; the data arrive only in the wait for this copy;
//   * addresses must be aligned; a thread must not end with pending copies;
//   * warps run one after the other, forward or backward (EXECUTOR_ORDER=1), each as far as it can, so that a missing
//     barrier causes an error;
//   * it reports lanes that meet in different collectives, lanes that leave the others waiting, and deadlocks.
//
// With -fsanitize=address, it finds accesses out of bounds. With -fsanitize=thread, it finds races: only __syncthreads
// and __syncwarp order the accesses of two CUDA threads.
//
// It cannot show the order in which tensor cores add, races between blocks, speed, and errors in device.cuh.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64 only"
#endif

// ---------------------------------------------------------------- sanitizers

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}
#define FORBID(where, size) __asan_poison_memory_region(where, size)
#define ALLOW(where, size) __asan_unpoison_memory_region(where, size)
#else
#define FORBID(where, size) (void)0
#define ALLOW(where, size) (void)0
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
// All fibers share the executor's own data on purpose, so the sanitizer must not report them.
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#define HAPPENS_BEFORE(what) __tsan_release(what)
#define HAPPENS_AFTER(what) __tsan_acquire(what)
#else
#define UNWATCHED
#define HAPPENS_BEFORE(what) (void)0
#define HAPPENS_AFTER(what) (void)0
#endif

// ---------------------------------------------------------------- CUDA's types

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// ---------------------------------------------------------------- fibers, warps, blocks

namespace executor {

constexpr size_t STACK = 128 << 10, GUARD = 64 << 10;
constexpr int LANES = 32, MOST_COPIES = 128, MOST_GROUPS = 16, SLOT = 64;

enum class State { RUNNABLE, IN_COLLECTIVE, AT_BARRIER, ENDED };
enum class Collective { SHUFFLE, SYNC, LOAD_MATRICES, LOAD_TRANSPOSED, MULTIPLY_ADD };

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::ENDED;
  dim3 index;
  int lane = 0, warp = 0;
  Copy copies[MOST_COPIES];      // pending, the oldest first
  int copy_count = 0;
  int group_ends[MOST_GROUPS];   // of each group: the number of copies up to its end
  int group_count = 0;
  void* tsan = nullptr;
  void* asan = nullptr;
};

struct Warp {
  int lanes = 0, running = 0, arrived = 0;
  unsigned meetings = 0;
  Collective collective{};
  alignas(16) unsigned char slots[2][LANES][SLOT];  // each lane's data for this meeting and for the last one
};

struct Block {
  dim3 index, size, grid;
  int threads = 0, running = 0, at_barrier = 0;
  unsigned barriers = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char*> stacks;
  unsigned char* shared = nullptr;
  Fiber scheduler;
  Fiber* current = nullptr;
  void (*kernel)(void*) = nullptr;
  void* arguments = nullptr;
  char error[256] = {};
};

inline thread_local Block* block = nullptr;

// Saves the callee-saved registers, and continues where another fiber saved its own.
extern "C" void executor_switch(void** save, void* load);
asm(".text\n.weak executor_switch\n.type executor_switch,@function\nexecutor_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size executor_switch,.-executor_switch\n");

UNWATCHED inline void switch_to(Fiber* to) {
  Fiber* from = block->current;
  if (from == to) return;
  block->current = to;
#if defined(__SANITIZE_ADDRESS__)
  const bool ends = from->state == State::ENDED && from != &block->scheduler;
  __sanitizer_start_switch_fiber(ends ? nullptr : &from->asan, to->stack, STACK);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to->tsan, 1);  // 1: the switch itself orders nothing
#endif
  executor_switch(&from->stack_pointer, to->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->current->asan, nullptr, nullptr);
#endif
}

// Ends the launch. The failed fiber never runs again.
UNWATCHED inline void fail(const char* why) {
  if (!block->error[0]) {
    const dim3 b = block->index, t = block->current->index;
    snprintf(block->error, sizeof block->error, "%s (block %u,%u,%u thread %u,%u,%u)", why, b.x, b.y, b.z, t.x, t.y,
             t.z);
  }
  switch_to(&block->scheduler);
}

// Switches to another lane of this warp that can run, or to another warp if there is none.
UNWATCHED inline void let_others_run() {
  Fiber* me = block->current;
  const int first = me->warp * LANES, lanes = block->warps[me->warp].lanes;
  for (int i = 1; i < lanes; ++i) {
    Fiber* other = &block->fibers[first + (me->lane + i) % lanes];
    if (other->state == State::RUNNABLE) return switch_to(other);
  }
  switch_to(&block->scheduler);
}

UNWATCHED inline void wake(int first, int count, State waiting) {
  for (int i = first; i < first + count; ++i) {
    if (block->fibers[i].state == waiting) block->fibers[i].state = State::RUNNABLE;
  }
}

// The slots of this lane's warp for the next meeting.
UNWATCHED inline unsigned char (*slots())[SLOT] {
  Warp& warp = block->warps[block->current->warp];
  return warp.slots[warp.meetings % 2];
}

// Waits until all lanes of the warp have arrived. The last lane does `work` on the slots.
template <class Work>
UNWATCHED void meet(Collective collective, Work&& work) {
  Fiber* me = block->current;
  Warp& warp = block->warps[me->warp];
  const unsigned meeting = warp.meetings;
  if (warp.running != warp.lanes) fail("a collective after a lane of the warp has ended");
  if (warp.arrived == 0) warp.collective = collective;
  if (warp.collective != collective) fail("lanes of a warp meet in different collectives");
  if (++warp.arrived == warp.lanes) {
    work(warp.slots[meeting % 2]);
    ++warp.meetings;
    warp.arrived = 0;
    wake(me->warp * LANES, warp.lanes, State::IN_COLLECTIVE);
    return;
  }
  me->state = State::IN_COLLECTIVE;
  while (warp.meetings == meeting) let_others_run();
}

UNWATCHED inline void pass_barrier() {
  block->at_barrier = 0;
  ++block->barriers;
  wake(0, block->threads, State::AT_BARRIER);
}

UNWATCHED inline void sync_block() {
  HAPPENS_BEFORE(&block->at_barrier);
  if (++block->at_barrier == block->running) {
    pass_barrier();
  } else {
    const unsigned barrier = block->barriers;
    block->current->state = State::AT_BARRIER;
    while (block->barriers == barrier) let_others_run();
  }
  HAPPENS_AFTER(&block->at_barrier);
}

[[noreturn]] UNWATCHED inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  HAPPENS_AFTER(&block->running);
  block->kernel(block->arguments);
  HAPPENS_BEFORE(&block->threads);
  Fiber* me = block->current;
  Warp& warp = block->warps[me->warp];
  if (me->copy_count) fail("a thread ends with copies under way");
  if (warp.arrived) fail("a lane ends while its warp waits in a collective");
  me->state = State::ENDED;
  --warp.running;
  --block->running;
  if (block->running && block->at_barrier == block->running) pass_barrier();
  let_others_run();
  __builtin_trap();
}

UNWATCHED inline void prepare(Fiber& fiber, int number) {
  const dim3 size = block->size;
  fiber.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
  fiber.lane = number % LANES;
  fiber.warp = number / LANES;
  fiber.state = State::RUNNABLE;
  fiber.copy_count = fiber.group_count = 0;
  fiber.asan = nullptr;
  fiber.stack = block->stacks[number];
  ALLOW(fiber.stack, STACK);  // the last block's functions never returned
  void** top = reinterpret_cast<void**>(fiber.stack + STACK) - 1;
  *top = nullptr;  // as after a call of run_fiber: the stack pointer is 8 below a multiple of 16
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that executor_switch restores
  fiber.stack_pointer = top;
}

UNWATCHED inline bool run_block(bool backward) {
  const int warps = (int)block->warps.size();
  block->running = block->threads;
  block->at_barrier = 0;
  for (int w = 0; w < warps; ++w) {
    const int lanes = block->threads - w * LANES < LANES ? block->threads - w * LANES : LANES;
    block->warps[w].lanes = block->warps[w].running = lanes;
    block->warps[w].arrived = 0;
  }
  for (int i = 0; i < block->threads; ++i) prepare(block->fibers[i], i);
  HAPPENS_BEFORE(&block->running);  // all work before the launch happens before every thread
  while (block->running && !block->error[0]) {
    bool any = false;
    for (int n = 0; n < warps && !block->error[0]; ++n) {
      const int first = (backward ? warps - 1 - n : n) * LANES;
      for (int i = first; i < first + LANES && i < block->threads; ++i) {
        if (block->fibers[i].state == State::RUNNABLE) {
          any = true;
          switch_to(&block->fibers[i]);
          break;
        }
      }
    }
    if (!any && block->running && !block->error[0]) {
      snprintf(block->error, sizeof block->error, "deadlock in block %u,%u,%u: of %d threads, %d are at a barrier",
               block->index.x, block->index.y, block->index.z, block->running, block->at_barrier);
    }
  }
  HAPPENS_AFTER(&block->threads);
  return !block->error[0];
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
  kernel(*reinterpret_cast<std::remove_cv_t<Arguments>*>(arguments[I])...);
}

// Runs a kernel. The arguments are in the format of cuLaunchKernel. Returns 0, or 1 with a message in `error`.
template <class... Arguments>
int launch(void (*kernel)(Arguments...), const unsigned* grid, const unsigned* size, size_t shared, void** arguments,
           char* error, size_t error_size) {
  struct Call {
    void (*kernel)(Arguments...);
    void** arguments;
  } the_call{kernel, arguments};
  static thread_local Block the_block;
  block = &the_block;
  block->error[0] = 0;
  block->grid = {grid[0], grid[1], grid[2]};
  block->size = {size[0], size[1], size[2]};
  block->threads = (int)(size[0] * size[1] * size[2]);
  block->fibers.resize(block->threads);
  block->warps.resize((block->threads + LANES - 1) / LANES);
  while ((int)block->stacks.size() < block->threads) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    block->stacks.push_back((char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, flags, -1, 0));
  }
#if defined(__SANITIZE_THREAD__)
  block->scheduler.tsan = __tsan_get_current_fiber();
  for (Fiber& fiber : block->fibers) fiber.tsan = __tsan_create_fiber(0);
#endif
  // Behind the requested memory is a guard area that no thread may access.
  block->shared = static_cast<unsigned char*>(aligned_alloc(128, (shared + GUARD + 127) / 128 * 128));
  unsigned char* const guard = block->shared + shared;
  block->arguments = &the_call;
  block->kernel = [](void* argument) {
    auto* a_call = static_cast<Call*>(argument);
    call(a_call->kernel, a_call->arguments, std::index_sequence_for<Arguments...>{});
  };
  block->current = &block->scheduler;
  const char* order = getenv("EXECUTOR_ORDER");
  const bool backward = order && order[0] == '1';
  bool ok = true;
  for (unsigned z = 0; ok && z < grid[2]; ++z)
    for (unsigned y = 0; ok && y < grid[1]; ++y)
      for (unsigned x = 0; ok && x < grid[0]; ++x) {
        block->index = {x, y, z};
        memset(block->shared, 0xff, shared + GUARD);
        FORBID(guard, GUARD);
        ok = run_block(backward);
        ALLOW(guard, GUARD);
        for (size_t i = 0; ok && i < GUARD; ++i) ok = guard[i] == 0xff;
        if (!ok && !block->error[0]) snprintf(block->error, sizeof block->error, "a write beyond shared memory");
      }
  free(block->shared);
  if (!ok) snprintf(error, error_size, "%s", block->error);
#if defined(__SANITIZE_THREAD__)
  for (Fiber& fiber : block->fibers) __tsan_destroy_fiber(fiber.tsan);
#endif
  return ok ? 0 : 1;
}

template <class T>
UNWATCHED T shuffle(T x, int from) {
  static_assert(sizeof(T) <= SLOT);
  auto* const of_lanes = slots();
  memcpy(of_lanes[block->current->lane], &x, sizeof(T));
  meet(Collective::SHUFFLE, [](unsigned char (*)[SLOT]) {});
  memcpy(&x, of_lanes[from % LANES], sizeof(T));
  return x;
}

}  // namespace executor

// ---------------------------------------------------------------- CUDA's names

#define __global__
#define __launch_bounds__(...)
#define threadIdx (executor::block->current->index)
#define blockIdx (executor::block->index)
#define blockDim (executor::block->size)
#define gridDim (executor::block->grid)

inline void __syncthreads() { executor::sync_block(); }
UNWATCHED inline void __syncwarp(unsigned = 0xffffffffu) {
  void* warp = &executor::block->warps[executor::block->current->warp];
  HAPPENS_BEFORE(warp);
  executor::meet(executor::Collective::SYNC, [](unsigned char (*)[executor::SLOT]) {});
  HAPPENS_AFTER(warp);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return executor::shuffle(x, executor::block->current->lane ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
  return executor::shuffle(x, lane);
}

// ---------------------------------------------------------------- the names of device.cuh

#define DEVICE inline
#define DYNAMIC_SHARED(name) unsigned char* const name = executor::block->shared
#define INFINITE INFINITY

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(float16 x) {
  _Float16 y;
  memcpy(&y, &x, 2);
  return (float)y;
}
inline float to_float(bfloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline float16 from_float<float16>(float x) {
  const _Float16 y = (_Float16)x;
  float16 z;
  memcpy(&z, &y, 2);
  return z;
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};  // NaN
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <class T>
unsigned pack(float low, float high) {
  return (unsigned)from_float<T>(low).bits | (unsigned)from_float<T>(high).bits << 16;
}

template <class T>
void unpack(unsigned both, float& low, float& high) {
  low = to_float(T{(uint16_t)(both & 0xffff)});
  high = to_float(T{(uint16_t)(both >> 16)});
}
template <class T>
void store_pair(T* to, unsigned both) {
  if ((uintptr_t)to % 4) executor::fail("store_pair: an address is not a multiple of 4");
  to[0] = T{(uint16_t)(both & 0xffff)};
  to[1] = T{(uint16_t)(both >> 16)};
}

UNWATCHED inline void queue_copy(void* to, const void* from) {
  executor::Fiber* me = executor::block->current;
  if (me->copy_count == executor::MOST_COPIES) executor::fail("too many copies under way for the executor");
  me->copies[me->copy_count++] = {to, from};
}
inline void copy_async(void* shared, const void* global) {
  if (((uintptr_t)shared | (uintptr_t)global) % 16) executor::fail("copy_async: an address is not a multiple of 16");
  memset(shared, 0xff, 16);
  queue_copy(shared, global);
}
inline void copy_or_zero_async(void* shared, const void* global, bool copies) {
  static const uint4 zeros{};
  copy_async(shared, copies ? global : &zeros);
}
UNWATCHED inline void end_copy_group() {
  executor::Fiber* me = executor::block->current;
  if (me->group_count == executor::MOST_GROUPS) executor::fail("too many copy groups for the executor");
  me->group_ends[me->group_count++] = me->copy_count;
}
// Removes the copies of all groups except the last `groups_left` from the queue, and returns their number.
UNWATCHED inline int take_copies(int groups_left, executor::Copy* taken) {
  executor::Fiber* me = executor::block->current;
  const int groups = me->group_count - groups_left;
  if (groups <= 0) return 0;
  const int count = me->group_ends[groups - 1];
  memcpy(taken, me->copies, count * sizeof(executor::Copy));
  memmove(me->copies, me->copies + count, (me->copy_count - count) * sizeof(executor::Copy));
  for (int i = groups; i < me->group_count; ++i) me->group_ends[i - groups] = me->group_ends[i] - count;
  me->copy_count -= count;
  me->group_count -= groups;
  return count;
}
template <int N>
void wait_for_copies() {
  executor::Copy arriving[executor::MOST_COPIES];
  const int count = take_copies(N, arriving);
  for (int i = 0; i < count; ++i) memcpy(arriving[i].to, arriving[i].from, 16);
}

template <bool TRANSPOSED>
UNWATCHED void exchange_matrices(unsigned (&fragments)[4], const uint4& row) {
  const int lane = executor::block->current->lane;
  auto* const rows = executor::slots();  // 8 numbers each; row r of matrix m is at 8 m + r
  memcpy(rows[lane], &row, 16);
  executor::meet(TRANSPOSED ? executor::Collective::LOAD_TRANSPOSED : executor::Collective::LOAD_MATRICES,
                 [](unsigned char (*)[executor::SLOT]) {});
  const auto at = [&](int m, int r, int c) UNWATCHED {
    uint16_t number;
    memcpy(&number, rows[m * 8 + r] + 2 * c, 2);
    return (unsigned)number;
  };
  const int i = lane / 4, j = lane % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    fragments[m] = TRANSPOSED ? at(m, j, i) | at(m, j + 1, i) << 16 : at(m, i, j) | at(m, i, j + 1) << 16;
  }
}
template <bool TRANSPOSED>
void load_matrices_as(unsigned (&fragments)[4], const void* row) {
  if ((uintptr_t)row % 16) executor::fail("load_matrices: an address is not a multiple of 16");
  uint4 numbers;
  memcpy(&numbers, row, 16);  // read it here, so that the sanitizers check it
  exchange_matrices<TRANSPOSED>(fragments, numbers);
}
inline void load_matrices(unsigned (&fragments)[4], const void* row) { load_matrices_as<false>(fragments, row); }
inline void load_matrices_transposed(unsigned (&fragments)[4], const void* row) {
  load_matrices_as<true>(fragments, row);
}

// The fragments of mma.m16n8k16: "Matrix fragments for mma.m16n8k16 with floating point type" in the PTX manual.
template <class T>
UNWATCHED void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Fragments {
    unsigned a[4], b[2];
    float c[4];
  };
  static_assert(sizeof(Fragments) <= executor::SLOT);
  Fragments* mine = reinterpret_cast<Fragments*>(executor::slots()[executor::block->current->lane]);
  memcpy(mine->a, a, sizeof a);
  mine->b[0] = b0;
  mine->b[1] = b1;
  memcpy(mine->c, c, sizeof c);
  executor::meet(executor::Collective::MULTIPLY_ADD, [](unsigned char (*slots)[executor::SLOT]) UNWATCHED {
    const auto number = [](unsigned both, int half) UNWATCHED { return to_float(T{(uint16_t)(both >> 16 * half)}); };
    float A[16][16], B[16][8], C[16][8];
    for (int lane = 0; lane < executor::LANES; ++lane) {
      const Fragments& its = *reinterpret_cast<const Fragments*>(slots[lane]);
      const int i = lane / 4, j = lane % 4 * 2;
      for (int h = 0; h < 2; ++h) {
        A[i][j + h] = number(its.a[0], h);
        A[i + 8][j + h] = number(its.a[1], h);
        A[i][j + 8 + h] = number(its.a[2], h);
        A[i + 8][j + 8 + h] = number(its.a[3], h);
        B[j + h][i] = number(its.b[0], h);
        B[j + 8 + h][i] = number(its.b[1], h);
        C[i][j + h] = its.c[h];
        C[i + 8][j + h] = its.c[2 + h];
      }
    }
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k)
        for (int j = 0; j < 8; ++j) C[i][j] += A[i][k] * B[k][j];
    for (int lane = 0; lane < executor::LANES; ++lane) {
      Fragments& its = *reinterpret_cast<Fragments*>(slots[lane]);
      const int i = lane / 4, j = lane % 4 * 2;
      for (int h = 0; h < 2; ++h) {
        its.c[h] = C[i][j + h];
        its.c[2 + h] = C[i + 8][j + h];
      }
    }
  });
  memcpy(c, mine->c, sizeof c);
}

inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal_fast(float x) { return 1.f / x; }
