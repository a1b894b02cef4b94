/* LoRA's skinny products in bfloat16: a tall matrix (T, d) times a handful of rank slices (R, d), R a multiple of 8.
 *
 *   down   z = x Aᵀ        (T, R) of x (T, d) and A (R, d)
 *   up     y += z B        (T, d) of z (T, R) and B (R, d)
 *   outer  G += zᵀ x       (R, d) float32, of z (T, R) and x (T, d)
 *
 * for one client after another. A matrix library spends most of such a product on preparing it. Rows may lie apart; d is a
 * multiple of 32. Sums are float32.
 * Needs AVX-512 BF16, which `supported` asks the processor for.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

/* Entries 2p and 2p + 1 of a row, in every lane. */
TARGET static inline __m512bh pair(const uint16_t *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

TARGET static inline __m512 plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }

/* Lane i of the result: the sum of the lanes of v[i]. */
TARGET static inline __m512 sums(const __m512 *v) {
    __m512 two[8];
    __m512d four[4];
    for (int i = 0; i < 8; i++)
        two[i] = plus(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = (__m512d)two[2 * i], b = (__m512d)two[2 * i + 1];
        four[i] = (__m512d)plus((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b));
    }
    __m512 eight[2];
    for (int i = 0; i < 2; i++) {
        __m512 a = (__m512)four[2 * i], b = (__m512)four[2 * i + 1];
        eight[i] = plus(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    return plus(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}

TARGET static int down(Matrix x, Matrix a, Matrix z, int64_t tokens, int64_t width, int64_t ranks) {
    for (int64_t t = 0; t < tokens; t += 2) {
        int two = t + 1 < tokens;
        const uint16_t *x0 = at(x, t), *x1 = two ? at(x, t + 1) : x0;
        for (int64_t r = 0; r < ranks; r += 8) {
            __m512 s[16];
            for (int i = 0; i < 16; i++) s[i] = _mm512_setzero_ps();
            for (int64_t c = 0; c < width; c += 32) {
                __m512bh left0 = load(x0 + c), left1 = load(x1 + c);
                for (int i = 0; i < 8; i++) {
                    __m512bh right = load(at(a, r + i) + c);
                    s[i] = _mm512_dpbf16_ps(s[i], left0, right);
                    s[8 + i] = _mm512_dpbf16_ps(s[8 + i], left1, right);
                }
            }
            __m256i found = (__m256i)_mm512_cvtneps_pbh(sums(s));
            _mm_storeu_si128((__m128i *)(at(z, t) + r), _mm256_castsi256_si128(found));
            if (two) _mm_storeu_si128((__m128i *)(at(z, t + 1) + r), _mm256_extracti128_si256(found, 1));
        }
    }
    return 0;
}

/* Rows 2p and 2p + 1 of b, entry by entry side by side: (rows / 2, columns) pairs; past an odd number of rows, zeros. */
TARGET static void interleave(Matrix b, int64_t rows, int64_t columns, uint16_t *out) {
    for (int64_t p = 0; p < (rows + 1) / 2; p++) {
        int two = 2 * p + 1 < rows;
        const uint16_t *even = at(b, 2 * p), *odd = two ? at(b, 2 * p + 1) : even;
        uint16_t *to = out + 2 * p * columns;
        for (int64_t c = 0; c < columns; c++) to[2 * c] = even[c], to[2 * c + 1] = two ? odd[c] : 0;
    }
}

TARGET static inline void up_rows(Matrix y, Matrix z, const uint16_t *pairs, int64_t t, const int rows, int64_t width,
                                  int64_t ranks) {
    for (int64_t c = 0; c < width; c += 32) {
        __m512 s0[4], s1[4];
        for (int i = 0; i < rows; i++) {
            __m512i old = _mm512_loadu_si512(at(y, t + i) + c);
            s0[i] = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(old)), 16);
            s1[i] = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti32x8_epi32(old, 1)), 16);
        }
        for (int64_t r = 0; r < ranks; r += 2) {
            const uint16_t *right = pairs + r * width + 2 * c;
            __m512bh right0 = load(right), right1 = load(right + 32);
            for (int i = 0; i < rows; i++) {
                __m512bh left = pair(at(z, t + i) + r);
                s0[i] = _mm512_dpbf16_ps(s0[i], left, right0);
                s1[i] = _mm512_dpbf16_ps(s1[i], left, right1);
            }
        }
        for (int i = 0; i < rows; i++)
            _mm512_storeu_si512((uint16_t *)at(y, t + i) + c, (__m512i)_mm512_cvtne2ps_pbh(s1[i], s0[i]));
    }
}

TARGET static int up(Matrix y, Matrix z, Matrix b, int64_t tokens, int64_t width, int64_t ranks) {
    uint16_t *pairs = malloc(ranks * width * sizeof(uint16_t));
    if (!pairs) return -1;
    interleave(b, ranks, width, pairs);
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) up_rows(y, z, pairs, t, 4, width, ranks);
    for (; t < tokens; t++) up_rows(y, z, pairs, t, 1, width, ranks);
    free(pairs);
    return 0;
}

TARGET static int outer(Matrix g, Matrix z, Matrix x, int64_t tokens, int64_t width, int64_t ranks) {
    /* unpacking works in quarters of a register: where the columns of its two halves belong */
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    uint16_t *pairs = malloc((tokens + 1) * ranks * sizeof(uint16_t));
    if (!pairs) return -1;
    interleave(z, tokens, ranks, pairs);
    for (int64_t begin = 0; begin < tokens; begin += BLOCK) {
        int64_t end = begin + BLOCK < tokens ? begin + BLOCK : tokens;
        for (int64_t r = 0; r < ranks; r += 8)
            for (int64_t c = 0; c < width; c += 32) {
                __m512 s0[8], s1[8];
                for (int i = 0; i < 8; i++) s0[i] = s1[i] = _mm512_setzero_ps();
                for (int64_t t = begin; t < end; t += 2) {
                    __m512i x0 = _mm512_loadu_si512(at(x, t) + c);
                    __m512i x1 = t + 1 < end ? _mm512_loadu_si512(at(x, t + 1) + c) : _mm512_setzero_si512();
                    __m512bh even = (__m512bh)_mm512_unpacklo_epi16(x0, x1), odd = (__m512bh)_mm512_unpackhi_epi16(x0, x1);
                    for (int i = 0; i < 8; i++) {
                        __m512bh left = pair(pairs + t * ranks + 2 * (r + i));
                        s0[i] = _mm512_dpbf16_ps(s0[i], left, even);
                        s1[i] = _mm512_dpbf16_ps(s1[i], left, odd);
                    }
                }
                for (int i = 0; i < 8; i++) {
                    float *to = (float *)g.data + (r + i) * g.row + c;
                    _mm512_storeu_ps(to, plus(_mm512_loadu_ps(to), _mm512_permutex2var_ps(s0[i], low, s1[i])));
                    to += 16;
                    _mm512_storeu_ps(to, plus(_mm512_loadu_ps(to), _mm512_permutex2var_ps(s0[i], high, s1[i])));
                }
            }
    }
    free(pairs);
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
    long long data[3], client[3], row[3], clients, tokens, width, ranks;
    int failed = 0;
    if (!PyArg_ParseTuple(arguments, "(LLL)(LLL)(LLL)LLLL", &data[0], &client[0], &row[0], &data[1], &client[1], &row[1],
                          &data[2], &client[2], &row[2], &clients, &tokens, &width, &ranks))
        return NULL;
    if (width % 32 || ranks % 8 || !supported()) {
        PyErr_SetString(PyExc_ValueError, "needs AVX-512 BF16, a width that 32 divides and ranks that 8 divides");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    for (int64_t k = 0; k < clients && !failed; k++) {
        Matrix m[3];
        for (int i = 0; i < 3; i++) m[i] = (Matrix){(char *)(intptr_t)(data[i] + k * client[i]), row[i]};
        failed = product(m[0], m[1], m[2], tokens, width, ranks);
    }
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
    {"down", py_down, METH_VARARGS, "down(x, A, z, clients, tokens, width, ranks): z = x Aᵀ"},
    {"up", py_up, METH_VARARGS, "up(y, z, B, clients, tokens, width, ranks): y += z B"},
    {"outer", py_outer, METH_VARARGS, "outer(G, z, x, clients, tokens, width, ranks): G += zᵀ x"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_skinny", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__skinny(void) { return PyModule_Create(&module); }
