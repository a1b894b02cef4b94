/* Attention over packed sentences on a CPU: softmax(cap(scaling · q kᵀ + bias)) v for every (sentence, head) alone, and its
 * gradient. Token i sees tokens i − left … i + right of its sentence; cap(s) is s, or softcap · tanh(s / softcap).
 *
 * Matrix libraries pay more for the call than for a product of 14 tokens by 32 values; here a (sentence, head) is widened to
 * float32 once, and its products, softmax and rounding stay in cache. Probabilities are computed again in the backward pass
 * from the logarithm of each softmax's sum.
 *
 * Values are bfloat16 (`half` true) or float32; a row's values of one head are contiguous. Arithmetic is float32.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define ROWS 8

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t IVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t UVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t HVec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* Where a tensor's rows and heads lie, in elements. */
typedef struct {
    char *data;
    int64_t row, head;
} Rows;

typedef struct {
    const int64_t *starts, *lengths;
    int64_t sentences, heads, width;
    float scaling;
    int half;
    int64_t left, right;
    float softcap; /* 0: none */
    const float *bias; /* (heads, side, side), or NULL */
    int64_t side;
} Shape;

INLINE Vec splat(float x) { return x - (Vec){0}; }

INLINE Vec widen(const uint16_t *x) { return (Vec)(__builtin_convertvector(*(const HVec *)x, UVec) << 16); }

/* To the nearest bfloat16, ties to even; values here are finite. */
INLINE void narrow(Vec value, uint16_t *out) {
    UVec bits = (UVec)value;
    *(HVec *)out = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, HVec);
}

/* eˣ for x ≤ 0, relative error below 2e-7; x below −87 counts as −87 (Cephes' expf). */
INLINE Vec exp_negative(Vec x) {
    Vec least = splat(-87.0f);
    IVec low = x < least;
    x = (Vec)(((IVec)x & ~low) | ((IVec)least & low));
    IVec n = __builtin_convertvector(x * 1.44269504f - 0.5f, IVec); /* truncation rounds x / ln 2 to the nearest, as x ≤ 0 */
    Vec f = __builtin_convertvector(n, Vec);
    x = x - f * 0.693359375f + f * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    return (p * x * x + x + 1.0f) * (Vec)((n + 127) << 23);
}

/* tanh, relative error below 3e-7 (Cephes' tanhf: a polynomial near 0, exponentials elsewhere). */
INLINE Vec tangent(Vec x) {
    Vec size = (Vec)((IVec)x & 0x7fffffff), square = x * x;
    Vec p = splat(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    p = p * square * x + x;
    Vec e = exp_negative(-2.0f * size);
    Vec far = (Vec)((IVec)((1.0f - e) / (1.0f + e)) | ((IVec)x & (int32_t)0x80000000));
    IVec near = (size < 0.625f) | (x != x); /* what is not a number stays so */
    return (Vec)(((IVec)p & near) | ((IVec)far & ~near));
}

/* out (m, n) = a (m, k) · b (k, n); m a multiple of ROWS, n of LANES. a is read at a[i · rows + l · columns]. */
INLINE void product(const float *a, int64_t rows, int64_t columns, const float *b, float *out, int64_t m, int64_t k,
                    int64_t n, int64_t b_row) {
    for (int64_t i = 0; i < m; i += ROWS)
        for (int64_t j = 0; j < n; j += LANES) {
            Vec sums[ROWS];
            for (int r = 0; r < ROWS; r++) sums[r] = splat(0.0f);
            for (int64_t l = 0; l < k; l++) {
                Vec right = *(const Vec *)(b + l * b_row + j);
                for (int r = 0; r < ROWS; r++) sums[r] += a[(i + r) * rows + l * columns] * right;
            }
            for (int r = 0; r < ROWS; r++) *(Vec *)(out + (i + r) * n + j) = sums[r];
        }
}

INLINE void load(Rows from, const Shape *s, int64_t start, int64_t length, int64_t head, float scale, float *out) {
    for (int64_t i = 0; i < length; i++) {
        int64_t at = (start + i) * from.row + head * from.head;
        for (int64_t c = 0; c < s->width; c += LANES) {
            Vec v = s->half ? widen((const uint16_t *)from.data + at + c) : *(const Vec *)((const float *)from.data + at + c);
            *(Vec *)(out + i * s->width + c) = v * scale;
        }
    }
}

INLINE void store(const float *values, const Shape *s, int64_t start, int64_t length, int64_t head, Rows to) {
    for (int64_t i = 0; i < length; i++) {
        int64_t at = (start + i) * to.row + head * to.head;
        for (int64_t c = 0; c < s->width; c += LANES) {
            Vec v = *(const Vec *)(values + i * s->width + c);
            if (s->half)
                narrow(v, (uint16_t *)to.data + at + c);
            else
                *(Vec *)((float *)to.data + at + c) = v;
        }
    }
}

/* (length, width) → (width, columns), columns ≥ length; what lies beyond is zero. */
INLINE void transpose(const float *in, int64_t length, int64_t width, int64_t columns, float *out) {
    for (int64_t c = 0; c < width; c++) {
        for (int64_t i = 0; i < length; i++) out[c * columns + i] = in[i * width + c];
        for (int64_t i = length; i < columns; i++) out[c * columns + i] = 0.0f;
    }
}

INLINE int64_t up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* Adds the bias to a sentence's scores (n, up(n)) and caps them; `slopes`, where given, gets the cap's derivative. */
INLINE void shape_scores(float *scores, int64_t n, const Shape *s, int64_t head, float *slopes) {
    int64_t m = up(n);
    for (int64_t i = 0; s->bias && i < n; i++) {
        const float *row = s->bias + (head * s->side + i) * s->side;
        for (int64_t j = 0; j < n; j++) scores[i * m + j] += row[j];
    }
    if (s->softcap == 0.0f) return;
    for (int64_t at = 0; at < n * m; at += LANES) {
        Vec t = tangent(*(Vec *)(scores + at) * (1.0f / s->softcap));
        *(Vec *)(scores + at) = t * s->softcap;
        if (slopes) *(Vec *)(slopes + at) = 1.0f - t * t;
    }
}

/* Scores (up(n), up(n)) → probabilities; zero outside what a token sees, and in rows and columns past a sentence's end. */
INLINE void softmax(float *scores, int64_t n, const Shape *s, float *sums, int64_t sums_row, int given) {
    const IVec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t m = up(n);
    for (int64_t i = 0; i < n; i++) {
        float *row = scores + i * m;
        int64_t from = i > s->left ? i - s->left : 0, to = i + s->right < n ? i + s->right + 1 : n;
        float shift = -INFINITY;
        if (given)
            shift = sums[i * sums_row];
        else
            for (int64_t j = from; j < to; j++) shift = row[j] > shift ? row[j] : shift;
        Vec total = splat(0.0f);
        for (int64_t j = 0; j < m; j += LANES) {
            Vec e = exp_negative(*(Vec *)(row + j) - shift);
            e = (Vec)((IVec)e & (lanes < (int32_t)(to - j)) & (lanes >= (int32_t)(from - j)));
            *(Vec *)(row + j) = e;
            total += e;
        }
        if (given) continue;
        float sum = 0.0f;
        for (int x = 0; x < LANES; x++) sum += total[x];
        sums[i * sums_row] = shift + logf(sum);
        for (int64_t j = 0; j < m; j += LANES) *(Vec *)(row + j) *= 1.0f / sum;
    }
    memset(scores + n * m, 0, sizeof(float) * (m - n) * m);
}

static int64_t longest(const Shape *s) {
    int64_t most = 0;
    for (int64_t b = 0; b < s->sentences; b++) most = s->lengths[b] > most ? s->lengths[b] : most;
    return up(most);
}

CLONES static int forward(const Shape *s, Rows q, Rows k, Rows v, Rows out, float *sums) {
    int64_t m = longest(s), side = m * s->width;
    float *memory = calloc(5 * side + m * m, sizeof(float));
    if (!memory) return -1;
    float *qs = memory, *ks = qs + side, *vs = ks + side, *kt = vs + side, *found = kt + side, *scores = found + side;
    for (int64_t b = 0; b < s->sentences; b++)
        for (int64_t h = 0; h < s->heads; h++) {
            int64_t start = s->starts[b], n = s->lengths[b], w = up(n), r = (n + ROWS - 1) / ROWS * ROWS;
            load(q, s, start, n, h, s->scaling, qs);
            load(k, s, start, n, h, 1.0f, ks);
            load(v, s, start, n, h, 1.0f, vs);
            transpose(ks, n, s->width, w, kt);
            product(qs, s->width, 1, kt, scores, r, s->width, w, w);
            shape_scores(scores, n, s, h, NULL);
            softmax(scores, n, s, sums + start * s->heads + h, s->heads, 0);
            product(scores, w, 1, vs, found, r, n, s->width, s->width);
            store(found, s, start, n, h, out);
        }
    free(memory);
    return 0;
}

CLONES static int backward(const Shape *s, Rows q, Rows k, Rows v, Rows grad, Rows dq, Rows dk, Rows dv, float *sums) {
    int64_t m = longest(s), side = m * s->width;
    float *memory = calloc(6 * side + (s->softcap == 0.0f ? 2 : 3) * m * m, sizeof(float));
    if (!memory) return -1;
    float *qs = memory, *ks = qs + side, *vs = ks + side, *gs = vs + side, *turned = gs + side, *found = turned + side;
    float *probs = found + side, *scores = probs + m * m, *slopes = s->softcap == 0.0f ? NULL : scores + m * m;
    for (int64_t b = 0; b < s->sentences; b++)
        for (int64_t h = 0; h < s->heads; h++) {
            int64_t start = s->starts[b], n = s->lengths[b], w = up(n), r = (n + ROWS - 1) / ROWS * ROWS;
            load(q, s, start, n, h, s->scaling, qs);
            load(k, s, start, n, h, 1.0f, ks);
            load(v, s, start, n, h, 1.0f, vs);
            load(grad, s, start, n, h, 1.0f, gs);
            transpose(ks, n, s->width, w, turned);
            product(qs, s->width, 1, turned, probs, r, s->width, w, w);
            shape_scores(probs, n, s, h, slopes);
            softmax(probs, n, s, sums + start * s->heads + h, s->heads, 1);
            transpose(vs, n, s->width, w, turned);
            product(gs, s->width, 1, turned, scores, r, s->width, w, w);
            for (int64_t i = 0; i < n; i++) {
                Vec total = splat(0.0f);
                float mean = 0.0f;
                for (int64_t j = 0; j < w; j += LANES)
                    total += *(Vec *)(probs + i * w + j) * *(Vec *)(scores + i * w + j);
                for (int x = 0; x < LANES; x++) mean += total[x];
                for (int64_t j = 0; j < w; j += LANES) {
                    Vec *at = (Vec *)(scores + i * w + j);
                    *at = (*at - mean) * *(Vec *)(probs + i * w + j);
                    if (slopes) *at *= *(Vec *)(slopes + i * w + j);
                }
            }
            memset(scores + n * w, 0, sizeof(float) * (w - n) * w);
            product(scores, 1, w, qs, found, r, n, s->width, s->width); /* qs holds the scaling */
            store(found, s, start, n, h, dk);
            product(probs, 1, w, gs, found, r, n, s->width, s->width);
            store(found, s, start, n, h, dv);
            for (int64_t i = 0; i < n * s->width; i++) ks[i] *= s->scaling;
            product(scores, w, 1, ks, found, r, n, s->width, s->width);
            store(found, s, start, n, h, dq);
        }
    free(memory);
    return 0;
}

static int rows(PyObject *argument, void *out) {
    Rows *r = out;
    long long data, row, head;
    if (!PyArg_ParseTuple(argument, "LLL", &data, &row, &head)) return 0;
    r->data = (char *)(intptr_t)data;
    r->row = row;
    r->head = head;
    return 1;
}

static int shape(PyObject *argument, void *out) {
    Shape *s = out;
    long long starts, lengths, sentences, heads, width, left, right, bias, side;
    if (!PyArg_ParseTuple(argument, "LLLLLfpLLfLL", &starts, &lengths, &sentences, &heads, &width, &s->scaling, &s->half,
                          &left, &right, &s->softcap, &bias, &side))
        return 0;
    s->starts = (const int64_t *)(intptr_t)starts;
    s->lengths = (const int64_t *)(intptr_t)lengths;
    s->sentences = sentences;
    s->heads = heads;
    s->width = width;
    s->left = left;
    s->right = right;
    s->bias = (const float *)(intptr_t)bias;
    s->side = side;
    if (width % LANES == 0) return 1;
    PyErr_Format(PyExc_ValueError, "a head's width must be a multiple of %d", LANES);
    return 0;
}

static PyObject *py_forward(PyObject *self, PyObject *arguments) {
    Shape s;
    Rows q, k, v, out;
    long long sums;
    int failed;
    if (!PyArg_ParseTuple(arguments, "O&O&O&O&O&L", shape, &s, rows, &q, rows, &k, rows, &v, rows, &out, &sums)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    failed = forward(&s, q, k, v, out, (float *)(intptr_t)sums);
    Py_END_ALLOW_THREADS;
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_backward(PyObject *self, PyObject *arguments) {
    Shape s;
    Rows q, k, v, grad, dq, dk, dv;
    long long sums;
    int failed;
    if (!PyArg_ParseTuple(arguments, "O&O&O&O&O&O&O&O&L", shape, &s, rows, &q, rows, &k, rows, &v, rows, &grad, rows, &dq,
                          rows, &dk, rows, &dv, &sums))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    failed = backward(&s, q, k, v, grad, dq, dk, dv, (float *)(intptr_t)sums);
    Py_END_ALLOW_THREADS;
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"forward", py_forward, METH_VARARGS, "forward(shape, q, k, v, out, sums)"},
    {"backward", py_backward, METH_VARARGS, "backward(shape, q, k, v, grad, dq, dk, dv, sums)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_attention", NULL, -1, methods, NULL, NULL, NULL, NULL};

/* Raised whenever the arguments of forward or backward change, so that an older build is told from this one. */
#define INTERFACE 2

PyMODINIT_FUNC PyInit__attention(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE)) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
