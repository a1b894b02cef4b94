/* A function of one bfloat16 by table: it has 65,536 arguments, so that looking a value up beats computing it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

static void look_up(const uint16_t *x, const uint16_t *values, uint16_t *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = values[x[i]];
}

/* out = grad · slopes[x], rounded to the nearest bfloat16, ties to even. */
CLONES static void chain(const uint16_t *x, const float *slopes, const uint16_t *grad, uint16_t *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)grad[i] << 16;
        float g;
        memcpy(&g, &bits, sizeof g);
        g *= slopes[x[i]];
        memcpy(&bits, &g, sizeof g);
        out[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

static PyObject *py_look_up(PyObject *self, PyObject *arguments) {
    long long x, values, out, count;
    if (!PyArg_ParseTuple(arguments, "LLLL", &x, &values, &out, &count)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    look_up((const uint16_t *)(intptr_t)x, (const uint16_t *)(intptr_t)values, (uint16_t *)(intptr_t)out, count);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_chain(PyObject *self, PyObject *arguments) {
    long long x, slopes, grad, out, count;
    if (!PyArg_ParseTuple(arguments, "LLLLL", &x, &slopes, &grad, &out, &count)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    chain((const uint16_t *)(intptr_t)x, (const float *)(intptr_t)slopes, (const uint16_t *)(intptr_t)grad,
          (uint16_t *)(intptr_t)out, count);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"look_up", py_look_up, METH_VARARGS, "look_up(x, values, out, count)"},
    {"chain", py_chain, METH_VARARGS, "chain(x, slopes, grad, out, count)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_table", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__table(void) { return PyModule_Create(&module); }
