// SPDX-License-Identifier: Apache-2.0
//
// The call on XLA's GPU backend. XLA calls, in this order:
//   instantiate  once per executable: the attributes are parsed;
//   prepare      per execution and device: asks XLA for the communicator of the
//                group. This also makes XLA hold the group for the execution
//                and let all ranks meet after initialize, so no rank waits in a
//                kernel for one that is still allocating or loading;
//   initialize   per execution and device: makes sure there is a workspace;
//   execute      per execution and device, or once under graph capture: only
//                launches a kernel.
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "cuda/all_reduce_kernel.h"
#include "cuda/call_attributes.h"
#include "cuda/device_guard.h"
#include "cuda/export.h"
#include "cuda/ffi_collectives.h"
#include "cuda/ffi_state.h"
#include "cuda/launch_plan.h"
#include "cuda/workspace_cache.h"
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
  // By device ordinal, as found by the latest initialize.
  std::array<std::atomic<const Workspace*>, kMaxDevices> workspaces = {};

  ffi::Error Failure(const std::string& message) const {
    return SiteError(ffi::ErrorCode::kFailedPrecondition, attributes.site,
                     message);
  }
};

ffi::ErrorOr<std::unique_ptr<GpuCall>> Instantiate(ffi::Dictionary dictionary) {
  ffi::ErrorOr<CallAttributes> attributes = ParseCallAttributes(dictionary);
  if (attributes.has_error()) return attributes.error();
  auto call = std::make_unique<GpuCall>();
  call->attributes = *std::move(attributes);
  return ffi::ErrorOr<std::unique_ptr<GpuCall>>(std::move(call));
}

ffi::Error Prepare(GpuCall* call, CommunicatorContext collectives) {
  return collectives.RequestCommunicator(
      ffi::GroupMode::kFlattenedId, call->attributes.groups, kCommunicationId);
}

ffi::Error Initialize(GpuCall* call, int32_t device,
                      CommunicatorContext collectives) {
  if (device < 0 || device >= kMaxDevices) {
    return call->Failure("device " + std::to_string(device) +
                         " is out of range");
  }
  ffi::ErrorOr<XLA_FFI_Communicator*> communicator =
      collectives.GetCommunicator(ffi::GroupMode::kFlattenedId,
                                  call->attributes.groups, kCommunicationId);
  if (communicator.has_error()) return communicator.error();
  std::string error;
  const Workspace* workspace = FindOrCreateWorkspace(
      *communicator, device, call->attributes.groups, &error);
  if (workspace == nullptr) {
    return call->Failure("cannot set up peer memory: " + error);
  }
  if (workspace->view.ranks != call->attributes.ranks()) {
    return call->Failure(
        "the communicator has " + std::to_string(workspace->view.ranks) +
        " ranks, the group " + std::to_string(call->attributes.ranks()));
  }
  call->workspaces[device].store(workspace, std::memory_order_release);
  return ffi::Error::Success();
}

ffi::Error Execute(GpuCall* call, int32_t device, cudaStream_t stream,
                   ffi::RemainingArgs operands, ffi::RemainingRets results) {
  ffi::ErrorOr<BoundCall> bound = BindCall(call->attributes, operands, results,
                                           /*trailing_operands=*/0);
  if (bound.has_error()) return bound.error();
  const Workspace* workspace =
      device < 0 || device >= kMaxDevices
          ? nullptr
          : call->workspaces[device].load(std::memory_order_acquire);
  if (workspace == nullptr) {
    return call->Failure("executed without initialize on device " +
                         std::to_string(device));
  }
  const std::optional<LaunchPlan> plan = PlanLaunch(
      bound->epilogue, bound->rows, bound->hidden, workspace->multiprocessors);
  if (!plan) {
    return call->Failure(std::to_string(bound->rows) + " rows of " +
                         std::to_string(bound->hidden) +
                         " elements do not fit the workspace");
  }
  const DeviceGuard guard(device);
  cudaError_t status = guard.status();
  if (status == cudaSuccess) {
    status = LaunchAllReduce(*plan, bound->epilogue, bound->buffers,
                             workspace->view, stream);
  }
  if (status != cudaSuccess) {
    cudaGetLastError();  // reported here: nobody else must find it
    return call->Failure(std::string("kernel launch: ") +
                         cudaGetErrorString(status));
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(kInstantiate, Instantiate,
                       ffi::Ffi::BindInstantiate().Attrs());

XLA_FFI_DEFINE_HANDLER(kPrepare, Prepare,
                       ffi::Ffi::BindPrepare()
                           .Ctx<ffi::State<GpuCall>>()
                           .Ctx<ffi::Extension<CollectivesExtension>>());

XLA_FFI_DEFINE_HANDLER(kInitialize, Initialize,
                       ffi::Ffi::BindInitialize()
                           .Ctx<ffi::State<GpuCall>>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::Extension<CollectivesExtension>>());

XLA_FFI_DEFINE_HANDLER(kExecute, Execute,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::State<GpuCall>>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .RemainingArgs()
                           .RemainingRets(),
                       {ffi::Traits::kCmdBufferCompatible});

}  // namespace
}  // namespace oneshot

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
