// Sums and maxima over a row by a block of threads, for row_kernels.py (on the CPU: compiled.hpp).
// EACH runs over the elements of a thread. over_row combines the values f(n) of a row; every thread
// gets the result, and its first barrier waits for those that still read an earlier one. NaN is the
// larger, as for NumPy.
#define EACH(n, N) for (long long n = threadIdx.x; n < N; n += blockDim.x)
#define SUM(n, N, value) over_row(plus, 0, N, [&](long long n) -> double { return value; })
__device__ double plus(double a, double b) { return a + b; }
template <typename T> __device__ T larger(T a, T b) { return b > a || isnan(b) ? b : a; }
template <typename Op, typename F> __device__ double over_row(Op op, double x, long long N, F f) {
    __shared__ double part[256];
    const unsigned int t = threadIdx.x;
    EACH(n, N) x = op(x, f(n));
    __syncthreads();
    part[t] = x;
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2, __syncthreads())
        if (t < half) part[t] = op(part[t], part[t + half]);
    return part[0];
}
