// SPDX-License-Identifier: Apache-2.0
//
// The functions of the CUDA driver, libcuda.so.1, that the product calls. They
// are found at run time and there is no other dependence on CUDA, so one
// library serves every driver from 525 (CUDA 12.0) on, whichever CUDA JAX comes
// with.
#ifndef ONESHOT_CUDA_RUNTIME_CUDA_DRIVER_H_
#define ONESHOT_CUDA_RUNTIME_CUDA_DRIVER_H_

#include <cuda.h>

#include <string>

namespace oneshot {

// Each function by the name of the symbol that all of these drivers have: the
// names in cuda.h are macros that lead to newer ones in newer headers.
#define ONESHOT_CUDA_DRIVER_FUNCTIONS(X)                    \
  X(Init, cuInit)                                           \
  X(DriverGetVersion, cuDriverGetVersion)                   \
  X(GetErrorString, cuGetErrorString)                       \
  X(DeviceGetCount, cuDeviceGetCount)                       \
  X(DeviceGet, cuDeviceGet)                                 \
  X(DeviceGetName, cuDeviceGetName)                         \
  X(DeviceTotalMem, cuDeviceTotalMem_v2)                    \
  X(DeviceGetAttribute, cuDeviceGetAttribute)               \
  X(DeviceCanAccessPeer, cuDeviceCanAccessPeer)             \
  X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)       \
  X(CtxGetCurrent, cuCtxGetCurrent)                         \
  X(CtxPushCurrent, cuCtxPushCurrent_v2)                    \
  X(CtxPopCurrent, cuCtxPopCurrent_v2)                      \
  X(CtxEnablePeerAccess, cuCtxEnablePeerAccess)             \
  X(LibraryLoadData, cuLibraryLoadData)                     \
  X(LibraryGetKernel, cuLibraryGetKernel)                   \
  X(KernelGetFunction, cuKernelGetFunction)                 \
  X(FuncGetAttribute, cuFuncGetAttribute)                   \
  X(LaunchKernel, cuLaunchKernel)                           \
  X(StreamCreate, cuStreamCreate)                           \
  X(StreamDestroy, cuStreamDestroy_v2)                      \
  X(StreamQuery, cuStreamQuery)                             \
  X(StreamSynchronize, cuStreamSynchronize)                 \
  X(StreamBeginCapture, cuStreamBeginCapture_v2)            \
  X(StreamEndCapture, cuStreamEndCapture)                   \
  X(GraphInstantiateWithFlags, cuGraphInstantiateWithFlags) \
  X(GraphLaunch, cuGraphLaunch)                             \
  X(GraphExecDestroy, cuGraphExecDestroy)                   \
  X(GraphDestroy, cuGraphDestroy)                           \
  X(MemAlloc, cuMemAlloc_v2)                                \
  X(MemFree, cuMemFree_v2)                                  \
  X(MemHostAlloc, cuMemHostAlloc)                           \
  X(MemFreeHost, cuMemFreeHost)                             \
  X(MemsetD8Async, cuMemsetD8Async)                         \
  X(MemcpyAsync, cuMemcpyAsync)                             \
  X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2)                  \
  X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2)                  \
  X(IpcGetMemHandle, cuIpcGetMemHandle)                     \
  X(IpcOpenMemHandle, cuIpcOpenMemHandle_v2)                \
  X(IpcCloseMemHandle, cuIpcCloseMemHandle)

// Stands in for a function that the driver lacks, or all where there is none:
// callers see a call that fails.
template <typename Function>
struct MissingFunction;
template <typename... Arguments>
struct MissingFunction<CUresult (*)(Arguments...)> {
  static CUresult Call(Arguments...) { return CUDA_ERROR_NOT_FOUND; }
};

struct CudaDriver {
#define ONESHOT_MEMBER(name, symbol) \
  decltype(&symbol) name = MissingFunction<decltype(&symbol)>::Call;
  ONESHOT_CUDA_DRIVER_FUNCTIONS(ONESHOT_MEMBER)
#undef ONESHOT_MEMBER

  // Null before CUDA 12.4.
  decltype(&cuFuncLoad) FuncLoad = nullptr;

  // What the machine lacks; empty if the driver is there and has everything.
  std::string missing;
};

// The driver, loaded and initialized by the first call. Thread-safe.
const CudaDriver& Cuda();

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_CUDA_DRIVER_H_
