/* LoRA's skinny products in bfloat16: a tall matrix (T, d) times a handful of rank slices (R, d), R a multiple of 8.
 *
 *   down   z = x Aᵀ        (T, R) of x (T, d) and A (R, d)
 *   up     y += z B        (T, d) of z (T, R) and B (R, d)
 *   outer  G += zᵀ x       (R, d) float32, of z (T, R) and x (T, d)
 *
 * A matrix library spends most of such a product on preparing it. Rows may lie apart; d is a multiple of 32. Sums are float32.
 * Needs AVX-512 BF16, which `supported` asks the processor for.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    char *data;
    int64_t row; /* elements from one row to the next */
} Matrix;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define BLOCK 64 /* rows that `outer` takes at a time, so that they stay in cache over all columns */

static int supported(void) { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw"); }

static inline const uint16_t *at(Matrix m, int64_t row) { return (const uint16_t *)m.data + row * m.row; }

TARGET static inline __m512bh load(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }

TARGET static inline __m512bh pair(uint16_t first, uint16_t second) {
    return (__m512bh)_mm512_set1_epi32((int)((uint32_t)first | (uint32_t)second << 16));
}

/* The sums of 8 vectors' lanes. */
TARGET static inline __m256 sums(const __m512 *v) {
    __m256 h[8];
    for (int i = 0; i < 8; i++) h[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(h[4], h[5]), _mm256_hadd_ps(h[6], h[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

TARGET static int down(Matrix x, Matrix a, Matrix z, int64_t tokens, int64_t width, int64_t ranks) {
    for (int64_t r = 0; r < ranks; r += 8)
        for (int64_t t = 0; t < tokens; t += 2) {
            const uint16_t *x0 = at(x, t), *x1 = t + 1 < tokens ? at(x, t + 1) : x0;
            __m512 s0[8], s1[8];
            for (int i = 0; i < 8; i++) s0[i] = s1[i] = _mm512_setzero_ps();
            for (int64_t c = 0; c < width; c += 32) {
                __m512bh left0 = load(x0 + c), left1 = load(x1 + c);
                for (int i = 0; i < 8; i++) {
                    __m512bh right = load(at(a, r + i) + c);
                    s0[i] = _mm512_dpbf16_ps(s0[i], left0, right);
                    s1[i] = _mm512_dpbf16_ps(s1[i], left1, right);
                }
            }
            _mm_storeu_si128((__m128i *)(at(z, t) + r), (__m128i)_mm256_cvtneps_pbh(sums(s0)));
            if (t + 1 < tokens) _mm_storeu_si128((__m128i *)(at(z, t + 1) + r), (__m128i)_mm256_cvtneps_pbh(sums(s1)));
        }
    return 0;
}

/* Rows 2p and 2p + 1 of b, entry by entry side by side: (R / 2, d) pairs. */
static void interleave(Matrix b, int64_t ranks, int64_t width, uint16_t *out) {
    for (int64_t p = 0; p < ranks / 2; p++) {
        const uint16_t *even = at(b, 2 * p), *odd = at(b, 2 * p + 1);
        uint16_t *to = out + 2 * p * width;
        for (int64_t c = 0; c < width; c++) to[2 * c] = even[c], to[2 * c + 1] = odd[c];
    }
}

TARGET static int up(Matrix y, Matrix z, Matrix b, int64_t tokens, int64_t width, int64_t ranks) {
    uint16_t *pairs = malloc(ranks * width * sizeof(uint16_t));
    if (!pairs) return -1;
    interleave(b, ranks, width, pairs);
    for (int64_t t = 0; t < tokens; t++) {
        uint16_t *row = (uint16_t *)at(y, t);
        const uint16_t *left = at(z, t);
        for (int64_t r = 0; r < ranks; r += 8) {
            __m512bh l[4];
            const uint16_t *right[4];
            for (int p = 0; p < 4; p++) l[p] = pair(left[r + 2 * p], left[r + 2 * p + 1]);
            for (int p = 0; p < 4; p++) right[p] = pairs + (r + 2 * p) * width;
            for (int64_t c = 0; c < width; c += 32) {
                __m512i old = _mm512_loadu_si512(row + c);
                __m512 s0 = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(old)), 16);
                __m512 s1 = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti32x8_epi32(old, 1)), 16);
                for (int p = 0; p < 4; p++) {
                    s0 = _mm512_dpbf16_ps(s0, l[p], load(right[p] + 2 * c));
                    s1 = _mm512_dpbf16_ps(s1, l[p], load(right[p] + 2 * c + 32));
                }
                _mm512_storeu_si512(row + c, (__m512i)_mm512_cvtne2ps_pbh(s1, s0));
            }
        }
    }
    free(pairs);
    return 0;
}

TARGET static int outer(Matrix g, Matrix z, Matrix x, int64_t tokens, int64_t width, int64_t ranks) {
    /* unpacking works in quarters of a register: where the columns of its two halves belong */
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int64_t begin = 0; begin < tokens; begin += BLOCK) {
        int64_t end = begin + BLOCK < tokens ? begin + BLOCK : tokens;
        for (int64_t r = 0; r < ranks; r += 8)
            for (int64_t c = 0; c < width; c += 32) {
                __m512 s0[8], s1[8];
                for (int i = 0; i < 8; i++) s0[i] = s1[i] = _mm512_setzero_ps();
                for (int64_t t = begin; t < end; t += 2) {
                    int two = t + 1 < end;
                    const uint16_t *z0 = at(z, t) + r, *z1 = two ? at(z, t + 1) + r : NULL;
                    __m512i x0 = _mm512_loadu_si512(at(x, t) + c);
                    __m512i x1 = two ? _mm512_loadu_si512(at(x, t + 1) + c) : _mm512_setzero_si512();
                    __m512bh even = (__m512bh)_mm512_unpacklo_epi16(x0, x1), odd = (__m512bh)_mm512_unpackhi_epi16(x0, x1);
                    for (int i = 0; i < 8; i++) {
                        __m512bh left = pair(z0[i], two ? z1[i] : 0);
                        s0[i] = _mm512_dpbf16_ps(s0[i], left, even);
                        s1[i] = _mm512_dpbf16_ps(s1[i], left, odd);
                    }
                }
                for (int i = 0; i < 8; i++) {
                    float *to = (float *)g.data + (r + i) * g.row + c;
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(s0[i], low, s1[i])));
                    to += 16;
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(s0[i], high, s1[i])));
                }
            }
    }
    return 0;
}

#else
static int supported(void) { return 0; }
static int down(Matrix x, Matrix a, Matrix z, int64_t t, int64_t d, int64_t r) { return -1; }
static int up(Matrix y, Matrix z, Matrix b, int64_t t, int64_t d, int64_t r) { return -1; }
static int outer(Matrix g, Matrix z, Matrix x, int64_t t, int64_t d, int64_t r) { return -1; }
#endif

typedef int (*Product)(Matrix, Matrix, Matrix, int64_t, int64_t, int64_t);

static PyObject *call(Product product, PyObject *arguments) {
    long long data[3], row[3], tokens, width, ranks;
    int failed;
    if (!PyArg_ParseTuple(arguments, "(LL)(LL)(LL)LLL", &data[0], &row[0], &data[1], &row[1], &data[2], &row[2], &tokens,
                          &width, &ranks))
        return NULL;
    if (width % 32 || ranks % 8 || !supported()) {
        PyErr_SetString(PyExc_ValueError, "needs AVX-512 BF16, a width that 32 divides and ranks that 8 divides");
        return NULL;
    }
    Matrix m[3];
    for (int i = 0; i < 3; i++) m[i] = (Matrix){(char *)(intptr_t)data[i], row[i]};
    Py_BEGIN_ALLOW_THREADS;
    failed = product(m[0], m[1], m[2], tokens, width, ranks);
    Py_END_ALLOW_THREADS;
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_down(PyObject *self, PyObject *arguments) { return call(down, arguments); }
static PyObject *py_up(PyObject *self, PyObject *arguments) { return call(up, arguments); }
static PyObject *py_outer(PyObject *self, PyObject *arguments) { return call(outer, arguments); }
static PyObject *py_supported(PyObject *self, PyObject *nothing) { return PyBool_FromLong(supported()); }

static PyMethodDef methods[] = {
    {"supported", py_supported, METH_NOARGS, "whether this processor can"},
    {"down", py_down, METH_VARARGS, "down(x, A, z, tokens, width, ranks): z = x Aᵀ"},
    {"up", py_up, METH_VARARGS, "up(y, z, B, tokens, width, ranks): y += z B"},
    {"outer", py_outer, METH_VARARGS, "outer(G, z, x, tokens, width, ranks): G += zᵀ x"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_skinny", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__skinny(void) { return PyModule_Create(&module); }
