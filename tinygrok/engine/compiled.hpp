// What the kernels of compiled.py stand on: the words of the CUDA bodies, and loops over the arrays
// of NumPy. HEAD: the bytes of a Python object before what is its own.
#define __FAST_MATH__ 1  // lets glibc declare its vector functions; the compiler does not know of it
#include <cmath>
#undef __FAST_MATH__
#include <algorithm>
#include <cstddef>

#define BOTH(name) \
  static inline float name(float x) { return ::name##f(x); } \
  static inline double name(double x) { return ::name(x); }
#define EACH(n, N) _Pragma("omp simd") for (Index n = 0; n < N; ++n)
#define SUM(n, N, value) over_row(plus, 0, N, [&](Index n) -> double { return value; })

namespace tinygrok {  // whose exp, log, ... a body finds before those of others
BOTH(exp) BOTH(log) BOTH(sqrt) BOTH(tanh) BOTH(erf)
using Index = std::ptrdiff_t;
using int32 = int;
using int64 = long long;
using float32 = float;
using float64 = double;
constexpr int W = 256;     // elements that an elementwise body computes at a time
constexpr int LANES = 8;   // partial sums of a row: more would cost short rows
constexpr int AXES = 64;   // of an array, at most
constexpr int MOST = 16;   // arguments of a kernel
constexpr struct { int x; } blockDim = {1}, threadIdx = {0};

// The beginning of a numpy.ndarray, as NumPy's binary interface fixes it.
struct Array {
  char head[HEAD];
  char* data;
  int axes;
  const Index* shape;
  const Index* steps;
};

// A row of an argument, or the whole of it.
template <typename T> struct Raw {
  T* p;
  Index n;
  Index size() const { return n; }
  T& operator[](Index j) const { return p[j]; }
};

// -- sums and maxima over a row, by LANES threads of a block side by side --------------------------

static inline double plus(double a, double b) { return a + b; }
template <typename T> T larger(T a, T b) { return b > a || std::isnan(b) ? b : a; }

template <typename Op, typename F> double over_row(Op op, double x, Index N, F f) {
  double part[LANES];
  std::fill(part, part + LANES, x);
  const Index whole = N - N % LANES;
  for (Index n = 0; n < whole; n += LANES) EACH(t, LANES) part[t] = op(part[t], f(n + t));
  for (Index n = whole; n < N; ++n) part[n - whole] = op(part[n - whole], f(n));
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int t = 0; t < half; ++t) part[t] = op(part[t], part[t + half]);
  return part[0];
}

// -- arrays ----------------------------------------------------------------------------------------

static Index row_size(const Array* a) { return a->axes ? a->shape[a->axes - 1] : 1; }

static Index elements(const Array* a) {
  Index n = 1;
  for (int k = 0; k < a->axes; ++k) n *= a->shape[k];
  return n;
}

// The step of an argument along an axis of the last one; 0 where it repeats.
static inline Index step(const Array* a, const Array* last, int axis) {
  const int own = axis - last->axes + a->axes;
  return own < 0 || a->shape[own] == 1 ? 0 : a->steps[own];
}

// Whether an argument is a single number, or has the shape of the last one and no gaps.
static bool is_flat(const Array* a, const Array* last, Index item) {
  if (elements(a) == 1) return true;
  if (a->axes != last->axes) return false;
  for (int k = a->axes - 1; k >= 0; --k) {
    if (a->shape[k] != last->shape[k] || (a->shape[k] > 1 && a->steps[k] != item)) return false;
    item *= a->shape[k];
  }
  return true;
}

// Whether all axes but the last broadcast to those of the last argument, and a row has no gaps and
// is as long as its own, or another's, or a single number (0: there is none).
static bool fits(const Array* a, const Array* last, const Array* other, Index item) {
  for (int k = 0; k < a->axes - 1; ++k) {
    const int axis = k + last->axes - a->axes;
    if (axis < 0 || (a->shape[k] != 1 && a->shape[k] != last->shape[axis])) return false;
  }
  const Index n = row_size(a);
  return n <= 1 || (a->steps[a->axes - 1] == item && (n == row_size(last) || n == row_size(other)));
}

// -- loops: each returns false, and has done nothing, where the arguments do not fit together ------

// body(pointers to arguments, arguments, N, i): what compiled.py makes of a kernel. N elements are in
// a row; i counts the rows from where the pointers stand.
template <typename T>
using Body = void (*)(T* const* p, const Array* const* a, Index N, Index i);

// Row by row of the last argument, with pointers to the rows of all.
template <typename T, typename F>
bool each_row(const Array* const* a, int count, const Array* other, F body) {
  const Array* last = a[count - 1];
  T* rows[MOST];
  Index at[AXES] = {};
  for (int j = 0; j < count; ++j) {
    if (!fits(a[j], last, other, sizeof(T))) return false;
    rows[j] = (T*)a[j]->data;
  }
  if (elements(last) == 0) return true;
  for (int axis = 0; axis >= 0;) {
    body(rows, a, row_size(last), 0);
    for (axis = last->axes - 2; axis >= 0; --axis) {
      const Index back = ++at[axis] == last->shape[axis] ? at[axis] : 0;
      for (int j = 0; j < count; ++j)
        rows[j] = (T*)((char*)rows[j] + (1 - back) * step(a[j], last, axis));
      if (!back) break;
      at[axis] = 0;
    }
  }
  return true;
}

template <typename T> bool loop_ROWS(const Array* const* a, int, int count, Body<T> body) {
  return each_row<T>(a, count, a[0], body);
}

// Row by row of the last argument, with pointers to the whole of all: arrays without gaps, in which
// a body finds other rows too.
template <typename T> bool loop_ARRAYS(const Array* const* a, int, int count, Body<T> body) {
  const Array* last = a[count - 1];
  T* whole[MOST];
  for (int j = 0; j < count; ++j) whole[j] = (T*)a[j]->data;
  const Index size = elements(last), N = row_size(last);
  for (Index i = 0; i * N < size; ++i) body(whole, a, N, i);
  return true;
}

// With pointers to W elements of all arguments, W by W elements. The body is one piece of machine
// code, without a loop for what is left over: the end of a row is moved to a room of W elements
// first, as are single numbers. So the bits of an element do not depend on where it stands.
template <typename T>
bool loop_ELEMENTS(const Array* const* a, int inputs, int count, Body<T> body) {
  Index item = sizeof(T), sizes[MOST];
  Array flat[MOST];
  const Array* used[MOST];
  bool all_flat = true;
  for (int j = 0; j < count; ++j) {
    sizes[j] = elements(a[j]);
    flat[j] = {{}, a[j]->data, 1, &sizes[j], &item};
    all_flat &= is_flat(a[j], a[count - 1], item);
  }
  for (int j = 0; j < count; ++j) {
    used[j] = all_flat ? &flat[j] : a[j];
    if (j >= inputs && sizes[j] != sizes[count - 1]) return false;
  }
  const Array* last = used[count - 1];
  return each_row<T>(used, count, last, [&](T* const* rows, const Array* const*, Index N, Index) {
    alignas(64) T room[MOST][W];
    T* p[MOST];
    Index next[MOST];
    for (int j = 0; j < count; ++j) {
      const bool single = row_size(used[j]) == 1 && N > 1;
      if (single) std::fill(room[j], room[j] + W, *rows[j]);
      p[j] = single ? room[j] : rows[j];
      next[j] = single ? 0 : W;
    }
    Index left = N;
    for (; left >= W; left -= W) {
      body(p, used, W, 0);
      for (int j = 0; j < count; ++j) p[j] += next[j];
    }
    T* end[MOST];
    std::copy(p, p + count, end);
    for (int j = 0; left && j < count; ++j) {
      if (next[j]) {
        std::fill(room[j], room[j] + W, *end[j]);
        std::copy(end[j], end[j] + left, room[j]);
      }
      p[j] = room[j];
    }
    if (left) body(p, used, W, 0);
    for (int j = inputs; j < count; ++j) std::copy(room[j], room[j] + left, end[j]);
  });
}

// What compiled.py writes: the body of a kernel, whose parameters are elements, rows or the whole of
// arrays, and the function that Python calls with these.
#define ELEMENTS_PLAIN(type, name, j) auto& name = ((type*)_p[j])[_k];
#define ROWS_PLAIN(type, name, j) const type name = *(type*)_p[j];
#define ARRAYS_PLAIN(type, name, j) const type name = *(type*)_p[j];
#define ROWS_RAW(type, name, j) const Raw<type> name = {(type*)_p[j], row_size(_a[j])};
#define ARRAYS_RAW(type, name, j) const Raw<type> name = {(type*)_p[j], elements(_a[j])};
#define EACH_OF_ELEMENTS EACH(_k, W)
#define EACH_OF_ROWS
#define EACH_OF_ARRAYS
#define BODY(name) \
  template <typename T> \
  static void name##_body(T* const* _p, const Array* const* _a, Index N, Index i)
#define LOOP(form, name, inputs, count) \
  static_assert(count <= MOST, "too many arguments"); \
  extern "C" int name##_loop(int wide, const Array* const* _a) { \
    return wide ? loop_##form<float64>(_a, inputs, count, name##_body<float64>) \
                : loop_##form<float32>(_a, inputs, count, name##_body<float32>); \
  }
}  // namespace tinygrok
