// SPDX-License-Identifier: Apache-2.0
//
// The call on XLA's CPU backend: an emulation for tests without a GPU. The
// devices are threads of one process, so the ranks of a group meet here and
// the last one to arrive computes the results of all.
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/handlers/call_attributes.h"
#include "cuda/handlers/export.h"
#include "cuda/handlers/ffi_state.h"
#include "cuda/program/interpreter.h"
#include "xla/ffi/api/ffi.h"

namespace oneshot {
namespace {

namespace ffi = ::xla::ffi;

// One group of ranks in one execution of one call.
struct Meeting {
  struct Rank {
    BoundCall call;
    ffi::Promise done;
  };
  std::vector<std::optional<Rank>> ranks;
  size_t arrived = 0;
};

// One custom call of one executable, shared by all devices that run it.
struct HostCall {
  static inline ffi::TypeId id = XLA_FFI_UNKNOWN_TYPE_ID;

  CallAttributes attributes;
  std::mutex mutex;
  // By run and group. A call that runs again within a run, in a loop, finds the
  // meeting of the earlier iteration gone: no rank leaves it before all came.
  std::map<std::pair<int64_t, size_t>, Meeting> meetings;
};

// Where a rank belongs: group and position in it.
struct Seat {
  size_t group;
  size_t position;
};

std::optional<Seat> FindSeat(const CallAttributes& attributes, int64_t id) {
  for (size_t g = 0; g < attributes.groups.size(); ++g) {
    const std::vector<int64_t>& group = attributes.groups[g];
    for (size_t p = 0; p < group.size(); ++p) {
      if (group[p] == id) return Seat{g, p};
    }
  }
  return std::nullopt;
}

// Computes the results of all ranks and lets them go on; `last` is the position
// of the rank that arrived last, on whose thread this runs.
void Conclude(Meeting& meeting, size_t last) {
  const BoundCall& first = meeting.ranks.front()->call;
  std::vector<Buffers> buffers;
  for (const auto& rank : meeting.ranks) buffers.push_back(rank->call.buffers);
  AllReduceOnHost(*first.program, first.rows, first.hidden, buffers);
  // XLA goes on with the rest of a rank's program inside its release, and that
  // may block: in a collective of XLA's own it waits for the ranks that would
  // be released next. So each goes on in a thread of its own, for which XLA's
  // pool may be too small.
  for (size_t i = 0; i < meeting.ranks.size(); ++i) {
    if (i == last) continue;
    const auto done =
        std::make_shared<ffi::Promise>(std::move(meeting.ranks[i]->done));
    try {
      std::thread([done] { done->SetAvailable(); }).detach();
    } catch (const std::system_error&) {
      done->SetAvailable();  // there is no thread: the pool may be large enough
    }
  }
  // This rank's future has not been returned yet: nothing waits for it.
  meeting.ranks[last]->done.SetAvailable();
}

ffi::Future Failed(ffi::Error error) {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetError(std::move(error));
  return future;
}

std::optional<uint32_t> ReadId(const ffi::RemainingArgs& operands,
                               size_t index) {
  auto id = operands.get<ffi::BufferR0<ffi::DataType::U32>>(index);
  if (id.has_error()) return std::nullopt;
  return *id->typed_data();
}

// Asynchronous: XLA's CPU thread pool may have fewer threads than devices, so a
// rank must not occupy one while it waits for the others.
ffi::Future Execute(HostCall* state, ffi::RunId run,
                    ffi::RemainingArgs operands, ffi::RemainingRets results) {
  const CallAttributes& attributes = state->attributes;
  const auto fail = [&](const std::string& message) {
    return Failed(
        SiteError(ffi::ErrorCode::kInvalidArgument, attributes.site, message));
  };

  if (attributes.num_partitions == 0) {
    return fail("attribute 'num_partitions': expected at least 1, got 0");
  }
  ffi::ErrorOr<BoundCall> call =
      BindCall(attributes, operands, results, /*trailing_operands=*/2);
  if (call.has_error()) return Failed(call.error());
  const std::optional<uint32_t> replica = ReadId(operands, operands.size() - 2);
  const std::optional<uint32_t> partition =
      ReadId(operands, operands.size() - 1);
  if (!replica || !partition) {
    return fail(
        "the last two operands: expected replica id and partition id, "
        "scalars of type U32");
  }
  const int64_t id = *replica * attributes.num_partitions + *partition;
  const std::optional<Seat> seat = FindSeat(attributes, id);
  if (!seat) {
    return fail("device " + std::to_string(id) +
                " is not in any of the replica groups");
  }

  ffi::Promise done;
  ffi::Future future(done);
  Meeting complete;
  {
    const std::pair<int64_t, size_t> key(run.run_id, seat->group);
    const std::lock_guard<std::mutex> lock(state->mutex);
    Meeting& meeting = state->meetings[key];
    meeting.ranks.resize(attributes.groups[seat->group].size());
    auto& rank = meeting.ranks[seat->position];
    if (rank.has_value()) {
      return fail("device " + std::to_string(id) +
                  " takes part twice in one all-reduce");
    }
    rank = Meeting::Rank{*call, std::move(done)};
    if (++meeting.arrived < meeting.ranks.size()) return future;
    complete = std::move(meeting);
    state->meetings.erase(key);
  }
  Conclude(complete, seat->position);
  return future;
}

ffi::ErrorOr<std::unique_ptr<HostCall>> Instantiate(
    ffi::Dictionary dictionary) {
  ffi::ErrorOr<CallAttributes> attributes = ParseCallAttributes(dictionary);
  if (attributes.has_error()) return attributes.error();
  auto state = std::make_unique<HostCall>();
  state->attributes = *std::move(attributes);
  return ffi::ErrorOr<std::unique_ptr<HostCall>>(std::move(state));
}

XLA_FFI_DEFINE_HANDLER(kInstantiate, Instantiate,
                       ffi::Ffi::BindInstantiate().Attrs());

XLA_FFI_DEFINE_HANDLER(kExecute, Execute,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::State<HostCall>>()
                           .Ctx<ffi::RunId>()
                           .RemainingArgs()
                           .RemainingRets());

}  // namespace
}  // namespace oneshot

ONESHOT_EXPORT XLA_FFI_Error* OneshotHostInstantiate(
    XLA_FFI_CallFrame* call_frame) {
  if (XLA_FFI_Error* error = oneshot::RegisterStateType<oneshot::HostCall>(
          call_frame, "oneshot.HostCall")) {
    return error;
  }
  return oneshot::kInstantiate(call_frame);
}

ONESHOT_EXPORT XLA_FFI_Error* OneshotHostExecute(
    XLA_FFI_CallFrame* call_frame) {
  return oneshot::kExecute(call_frame);
}
