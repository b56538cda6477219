// SPDX-License-Identifier: Apache-2.0
//
// The call on XLA's GPU backend. XLA calls, in this order:
//   instantiate  once per executable: the attributes are parsed;
//   prepare      per execution and device: asks XLA for the communicator of the
//                group, unless another call has (communicator_memo.h). This
//                also makes XLA hold the group for the execution and let all
//                ranks meet after initialize, so no rank waits in a kernel for
//                one that is still allocating or loading;
//   initialize   per execution and device: makes sure that there is a workspace
//                and that the kernel is on the device;
//   execute      per execution and device, or once under graph capture: only
//                launches a kernel.
#include <cuda.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda/handlers/call_attributes.h"
#include "cuda/handlers/communicator_memo.h"
#include "cuda/handlers/export.h"
#include "cuda/handlers/ffi_collectives.h"
#include "cuda/handlers/ffi_state.h"
#include "cuda/handlers/workspace_cache.h"
#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"
#include "cuda/runtime/device.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fault.h"
#include "cuda/runtime/kernel_cache.h"
#include "cuda/runtime/launch.h"
#include "xla/ffi/api/ffi.h"

namespace oneshot {
namespace {

namespace ffi = ::xla::ffi;

constexpr int kMaxDevices = 64;

// All of XLA's collectives that do not ask for a channel of their own use this.
constexpr int64_t kCommunicationId = 0;

// One custom call of one executable, shared by all devices that run it.
struct GpuCall {
  static inline ffi::TypeId id = XLA_FFI_UNKNOWN_TYPE_ID;

  CallAttributes attributes;
  int group = 0;      // numbers attributes.groups
  uint64_t site = 0;  // names it in a Fault
  // By device ordinal, as found by the latest initialize.
  struct Device {
    std::atomic<void*> communicator = nullptr;  // that the workspace is of
    std::atomic<const Workspace*> workspace = nullptr;
    std::atomic<const Kernel*> kernel = nullptr;
  };
  std::array<Device, kMaxDevices> devices;

  ffi::Error Failure(const std::string& message) const {
    return SiteError(ffi::ErrorCode::kFailedPrecondition, attributes.site,
                     message);
  }
};

const Kernel* KernelOf(const CallAttributes& attributes, bool aligned,
                       const DeviceTraits& device, std::string* error) {
  return FindOrCompileKernel(attributes.program, attributes.rows,
                             attributes.hidden, attributes.ranks(), aligned,
                             device, error);
}

// The kernel, put onto the device. Null with the reason in `error`. XLA aligns
// its buffers by far more than a packet; Execute looks again.
const Kernel* LoadedKernelOf(const CallAttributes& attributes, int device,
                             std::string* error) {
  DeviceTraits traits;
  if (!QueryDevice(device, &traits, error)) return nullptr;
  const Kernel* kernel = KernelOf(attributes, /*aligned=*/true, traits, error);
  if (kernel == nullptr) return nullptr;
  const DeviceGuard guard(device);
  CUresult status = guard.status();
  if (status == CUDA_SUCCESS) status = LoadKernel(*kernel);
  if (status != CUDA_SUCCESS) {
    *error = "loading the kernel: " + CudaErrorText(status);
    return nullptr;
  }
  return kernel;
}

// The same number for the same replica groups.
int GroupNumber(const std::vector<std::vector<int64_t>>& groups) {
  static std::mutex mutex;
  static auto* const numbers =
      new std::map<std::vector<std::vector<int64_t>>, int>;
  const std::lock_guard<std::mutex> lock(mutex);
  return numbers->emplace(groups, numbers->size()).first->second;
}

CommunicatorMemo& Memo() {
  static thread_local CommunicatorMemo memo;
  return memo;
}

ffi::ErrorOr<std::unique_ptr<GpuCall>> Instantiate(ffi::Dictionary dictionary) {
  ffi::ErrorOr<CallAttributes> attributes = ParseCallAttributes(dictionary);
  if (attributes.has_error()) return attributes.error();
  auto call = std::make_unique<GpuCall>();
  call->attributes = *std::move(attributes);
  call->group = GroupNumber(call->attributes.groups);
  call->site = SiteNumber(call->attributes.site);
  return ffi::ErrorOr<std::unique_ptr<GpuCall>>(std::move(call));
}

ffi::Error Prepare(GpuCall* call, ffi::RunId run, int32_t device,
                   CommunicatorContext collectives) {
  // After a fault nothing runs any more: say why, not what CUDA says.
  const std::string fault = FaultMessage();
  if (!fault.empty()) return call->Failure(fault);
  if (Memo().Requested({run.run_id, device}, call->group)) {
    return ffi::Error::Success();
  }
  const ffi::Error error = collectives.RequestCommunicator(
      ffi::GroupMode::kFlattenedId, call->attributes.groups, kCommunicationId);
  if (error.success()) Memo().NoteRequest(call->group);
  return error;
}

ffi::Error Initialize(GpuCall* call, ffi::RunId run, int32_t device,
                      CommunicatorContext collectives) {
  if (device < 0 || device >= kMaxDevices) {
    return call->Failure("device " + std::to_string(device) +
                         " is out of range");
  }
  const Execution execution = {run.run_id, device};
  void* communicator = Memo().Find(execution, call->group);
  if (communicator == nullptr) {
    ffi::ErrorOr<XLA_FFI_Communicator*> found =
        collectives.GetCommunicator(ffi::GroupMode::kFlattenedId,
                                    call->attributes.groups, kCommunicationId);
    if (found.has_error()) return found.error();
    communicator = *found;
    Memo().NoteCommunicator(execution, call->group, communicator);
  }
  GpuCall::Device& on_device = call->devices[device];
  // This runs for every call of every execution: mostly nothing is new.
  if (on_device.communicator.load(std::memory_order_acquire) == communicator) {
    return ffi::Error::Success();
  }
  // The kernel comes first: where the ranks have yet to agree on a workspace, a
  // rank without a kernel can then tell the others, instead of leaving them to
  // wait for it in theirs.
  const CallAttributes& attributes = call->attributes;
  std::string objection;
  const Kernel* kernel = LoadedKernelOf(attributes, device, &objection);
  std::string error;
  const Workspace* workspace = FindOrCreateWorkspace(
      communicator, device, attributes.groups, objection, &error);
  if (workspace == nullptr) {
    return call->Failure("cannot set up peer memory: " + error);
  }
  if (kernel == nullptr) return call->Failure(objection);
  if (workspace->view.ranks != attributes.ranks()) {
    return call->Failure(
        "the communicator has " + std::to_string(workspace->view.ranks) +
        " ranks, the group " + std::to_string(attributes.ranks()));
  }
  on_device.workspace.store(workspace, std::memory_order_release);
  on_device.kernel.store(kernel, std::memory_order_release);
  on_device.communicator.store(communicator, std::memory_order_release);
  return ffi::Error::Success();
}

ffi::Error Execute(GpuCall* call, int32_t device, CUstream stream,
                   ffi::RemainingArgs operands, ffi::RemainingRets results) {
  ffi::ErrorOr<BoundCall> bound = BindCall(call->attributes, operands, results,
                                           /*trailing_operands=*/0);
  if (bound.has_error()) return bound.error();
  const Workspace* workspace = nullptr;
  const Kernel* kernel = nullptr;
  if (device >= 0 && device < kMaxDevices) {
    workspace = call->devices[device].workspace.load(std::memory_order_acquire);
    kernel = call->devices[device].kernel.load(std::memory_order_acquire);
  }
  if (workspace == nullptr || kernel == nullptr) {
    return call->Failure("executed without initialize on device " +
                         std::to_string(device));
  }
  if (kernel->wide && !IsAligned(bound->buffers)) {
    std::string error;
    kernel = KernelOf(call->attributes, /*aligned=*/false, workspace->device,
                      &error);
    if (kernel == nullptr) return call->Failure(error);
  }
  const DeviceGuard guard(device);
  CUresult status = guard.status();
  if (status == CUDA_SUCCESS) {
    status = LaunchAllReduce(*kernel, bound->buffers, workspace->view,
                             call->site, stream);
  }
  if (status != CUDA_SUCCESS) {
    return call->Failure("kernel launch: " + CudaErrorText(status));
  }
  return ffi::Error::Success();
}

// For every kind of device that the process sees.
void Compile(const char* text, int64_t rows, int64_t hidden, int ranks,
             std::string* error) {
  EpilogueProgram program;
  if (!FromText(text, &program, error)) return;
  int count = 0;
  if (Cuda().DeviceGetCount(&count) != CUDA_SUCCESS) {
    *error = "no device answers";
    return;
  }
  for (int device = 0; device < count; ++device) {
    DeviceTraits traits;
    if (!QueryDevice(device, &traits, error) ||
        FindOrCompileKernel(program, rows, hidden, ranks, /*aligned=*/true,
                            traits, error) == nullptr) {
      return;
    }
  }
}

XLA_FFI_DEFINE_HANDLER(kInstantiate, Instantiate,
                       ffi::Ffi::BindInstantiate().Attrs());

XLA_FFI_DEFINE_HANDLER(kPrepare, Prepare,
                       ffi::Ffi::BindPrepare()
                           .Ctx<ffi::State<GpuCall>>()
                           .Ctx<ffi::RunId>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::Extension<CollectivesExtension>>());

XLA_FFI_DEFINE_HANDLER(kInitialize, Initialize,
                       ffi::Ffi::BindInitialize()
                           .Ctx<ffi::State<GpuCall>>()
                           .Ctx<ffi::RunId>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::Extension<CollectivesExtension>>());

XLA_FFI_DEFINE_HANDLER(kExecute, Execute,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::State<GpuCall>>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::PlatformStream<CUstream>>()
                           .RemainingArgs()
                           .RemainingRets(),
                       {ffi::Traits::kCmdBufferCompatible});

}  // namespace
}  // namespace oneshot

// Where the run-time compiler is, "" if that is not known; see nvrtc.h.
ONESHOT_EXPORT void oneshot_gpu_set_nvrtc(const char* path) {
  oneshot::SetNvrtcPath(path);
}

// How long a kernel waits for a peer.
ONESHOT_EXPORT void oneshot_gpu_set_timeout(double seconds) {
  oneshot::SetTimeout(seconds);
}

// Where lines for the log go; see fault.h.
ONESHOT_EXPORT void oneshot_gpu_set_log(oneshot::OneshotLog log) {
  oneshot::SetLog(log);
}

// Compiles the kernel of a call ahead of its first run. Null, or a malloc'ed
// reason why that is not possible. Thread-safe.
ONESHOT_EXPORT char* oneshot_gpu_compile(const char* program, int64_t rows,
                                         int64_t hidden, int ranks) {
  std::string error;
  oneshot::Compile(program, rows, hidden, ranks, &error);
  return error.empty() ? nullptr : strdup(error.c_str());
}

ONESHOT_EXPORT XLA_FFI_Error* OneshotGpuInstantiate(
    XLA_FFI_CallFrame* call_frame) {
  if (XLA_FFI_Error* error = oneshot::RegisterStateType<oneshot::GpuCall>(
          call_frame, "oneshot.GpuCall")) {
    return error;
  }
  return oneshot::kInstantiate(call_frame);
}

ONESHOT_EXPORT XLA_FFI_Error* OneshotGpuPrepare(XLA_FFI_CallFrame* call_frame) {
  return oneshot::kPrepare(call_frame);
}

ONESHOT_EXPORT XLA_FFI_Error* OneshotGpuInitialize(
    XLA_FFI_CallFrame* call_frame) {
  return oneshot::kInitialize(call_frame);
}

ONESHOT_EXPORT XLA_FFI_Error* OneshotGpuExecute(XLA_FFI_CallFrame* call_frame) {
  return oneshot::kExecute(call_frame);
}
