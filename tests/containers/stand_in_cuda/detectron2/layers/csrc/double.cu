// The header of torch that needs more of a toolkit than nvcc: those of cuSPARSE, cuBLAS and cuSOLVER.
#include <ATen/cuda/CUDAContextLight.h>

#include <Python.h>

__global__ void twice(float* values, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) values[i] *= 2;
}

static PyObject* has_cuda(PyObject*, PyObject*) { Py_RETURN_TRUE; }

static PyMethodDef methods[] = {{"has_cuda", has_cuda, METH_NOARGS, nullptr}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
