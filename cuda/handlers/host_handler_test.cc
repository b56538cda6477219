// SPDX-License-Identifier: Apache-2.0
//
// The handler for CPU devices against a stand-in for XLA, which calls it as XLA
// may: from any thread, in any order, for several runs and executables at once,
// and with ranks that are late. Unlike programs of JAX it can be built with
// sanitizers, and makes millions of calls in minutes:
//
//   host_handler_test --gtest_filter='*RandomShapes' --replays=10000000

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/handlers/ffi_test_attributes.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/interpreter.h"
#include "xla/ffi/api/c_api.h"

extern "C" XLA_FFI_Error* OneshotHostInstantiate(XLA_FFI_CallFrame* call_frame);
extern "C" XLA_FFI_Error* OneshotHostExecute(XLA_FFI_CallFrame* call_frame);

// What XLA keeps behind its opaque types.

struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

struct XLA_FFI_Future {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::string error;

  // Under the lock to the end: who sees `done` deletes the future.
  void Complete(std::string message) {
    const std::lock_guard<std::mutex> lock(mutex);
    EXPECT_FALSE(done) << "completed twice";
    done = true;
    error = std::move(message);
    changed.notify_all();
  }
};

struct XLA_FFI_InvokeContext {
  void** state;
  int64_t run;
};

namespace oneshot {
namespace {

using ::testing::HasSubstr;

int64_t replays = 2000;  // of RandomShapes

XLA_FFI_Error* const kNoError = nullptr;
void (*delete_state)(void*) = nullptr;

XLA_FFI_Api MakeApi() {
  XLA_FFI_Api api = {};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr,
                     XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
    return new XLA_FFI_Error{args->errc, args->message};
  };
  api.XLA_FFI_Error_GetDetails = [](XLA_FFI_Error_GetDetails_Args* args) {
    args->message = args->error->message.c_str();
    args->errc = args->error->code;
  };
  api.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) {
    delete args->error;
  };
  api.XLA_FFI_Type_Register = [](XLA_FFI_Type_Register_Args* args) {
    args->type_id->type_id = 1;
    delete_state = args->type_info->deleter;
    return kNoError;
  };
  api.XLA_FFI_State_Set = [](XLA_FFI_State_Set_Args* args) {
    *args->ctx->state = args->state;
    return kNoError;
  };
  api.XLA_FFI_State_Get = [](XLA_FFI_State_Get_Args* args) {
    args->state = *args->ctx->state;
    return kNoError;
  };
  api.XLA_FFI_RunId_Get = [](XLA_FFI_RunId_Get_Args* args) {
    args->run_id = args->ctx->run;
    return kNoError;
  };
  api.XLA_FFI_Future_Create = [](XLA_FFI_Future_Create_Args* args) {
    args->future = new XLA_FFI_Future;
    return kNoError;
  };
  api.XLA_FFI_Future_SetAvailable = [](XLA_FFI_Future_SetAvailable_Args* args) {
    args->future->Complete("");
    return kNoError;
  };
  api.XLA_FFI_Future_SetError = [](XLA_FFI_Future_SetError_Args* args) {
    const std::unique_ptr<XLA_FFI_Error> error(args->error);
    args->future->Complete(error->message);
    return kNoError;
  };
  return api;
}

const XLA_FFI_Api kApi = MakeApi();

XLA_FFI_CallFrame MakeFrame(XLA_FFI_ExecutionStage stage,
                            XLA_FFI_InvokeContext* context) {
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &kApi;
  frame.ctx = context;
  frame.stage = stage;
  frame.args.struct_size = XLA_FFI_Args_STRUCT_SIZE;
  frame.rets.struct_size = XLA_FFI_Rets_STRUCT_SIZE;
  frame.attrs.struct_size = XLA_FFI_Attrs_STRUCT_SIZE;
  return frame;
}

// The future of one rank's call. Whoever lets go of it waits for it first:
// until then the call uses the memory of its operands and results.
class Pending {
 public:
  explicit Pending(XLA_FFI_Future* future) : future_(future) {}
  Pending(Pending&&) = default;
  ~Pending() {
    if (future_ != nullptr) Wait();
  }

  bool IsDone() const {
    const std::lock_guard<std::mutex> lock(future_->mutex);
    return future_->done;
  }

  // Returns the error, or "".
  std::string Wait() const {
    std::unique_lock<std::mutex> lock(future_->mutex);
    future_->changed.wait(lock, [this] { return future_->done; });
    return future_->error;
  }

 private:
  std::unique_ptr<XLA_FFI_Future> future_;
};

struct Shape {
  DType dtype;
  int ranks;
  int groups;
  int64_t rows;
  int64_t hidden;

  int devices() const { return ranks * groups; }
  // The groups have their members from everywhere, in descending order.
  int64_t DeviceAt(int group, int position) const {
    return (ranks - 1 - position) * groups + group;
  }
  int GroupOf(int device) const { return device % groups; }
};

// Operands and results of one device in one run.
struct Part {
  int64_t run;
  std::vector<char> x;
  float addend;
  uint32_t replica;
  uint32_t partition;
  std::vector<float> sum;
  std::vector<float> largest;
};

// An executable with one call: the sum, to which each device adds a number of
// its own, and the largest of each row.
class Executable {
 public:
  explicit Executable(const Shape& shape) : shape_(shape) {
    const std::string program =
        std::string("x ") + kNames[Index(shape.dtype)] +
        "; in0 scalar f32; v0 = sum; v1 = in0; v2 = add v0 v1; "
        "v3 = reduce_max v2; out0 v2 f32; out1 v3 f32";
    std::vector<int64_t> ids;
    for (int group = 0; group < shape.groups; ++group) {
      for (int position = 0; position < shape.ranks; ++position) {
        ids.push_back(shape.DeviceAt(group, position));
      }
    }
    TestAttributes attributes;
    attributes.Set("abi", kAbiVersion);
    attributes.Set("group_mode", "flattened_id");
    attributes.Set("group_size", shape.ranks);
    attributes.Set("hidden", shape.hidden);
    attributes.Set("num_partitions", shape.devices());
    attributes.Set("program", program);
    attributes.Set("replica_groups", ids);
    attributes.Set("rows", shape.rows);
    attributes.Set("site", "test/psum");
    XLA_FFI_InvokeContext context = {&state_, 0};
    XLA_FFI_CallFrame frame =
        MakeFrame(XLA_FFI_ExecutionStage_INSTANTIATE, &context);
    frame.attrs = attributes.Encode();
    EXPECT_EQ(OneshotHostInstantiate(&frame), nullptr);
  }
  ~Executable() { delete_state(state_); }
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  const Shape& shape() const { return shape_; }

  Part MakePart(int64_t run, int device) const {
    Part part;
    part.run = run;
    part.x.resize(shape_.rows * shape_.hidden * ByteWidth(shape_.dtype));
    for (int64_t i = 0; i < shape_.rows * shape_.hidden; ++i) {
      StoreElement(part.x.data(), shape_.dtype, i, X(run, device, i));
    }
    part.addend = static_cast<float>(device);
    part.replica = 0;
    part.partition = device;
    part.sum.assign(shape_.rows * shape_.hidden, -1);
    part.largest.assign(shape_.rows, -1);
    return part;
  }

  Pending Execute(Part& part) {
    std::array<int64_t, 2> dims = {shape_.rows, shape_.hidden};
    const auto buffer = [&](XLA_FFI_DataType dtype, auto* data, int64_t rank) {
      return XLA_FFI_Buffer{
          XLA_FFI_Buffer_STRUCT_SIZE, nullptr, dtype, data, rank, dims.data()};
    };
    std::array<XLA_FFI_Buffer, 4> operands = {
        buffer(kTypes[Index(shape_.dtype)], part.x.data(), 2),
        buffer(XLA_FFI_DataType_F32, &part.addend, 0),
        buffer(XLA_FFI_DataType_U32, &part.replica, 0),
        buffer(XLA_FFI_DataType_U32, &part.partition, 0)};
    std::array<XLA_FFI_Buffer, 2> results = {
        buffer(XLA_FFI_DataType_F32, part.sum.data(), 2),
        buffer(XLA_FFI_DataType_F32, part.largest.data(), 1)};
    std::array<void*, 4> args;
    std::array<void*, 2> rets;
    std::array<XLA_FFI_ArgType, 4> arg_types;
    std::array<XLA_FFI_RetType, 2> ret_types;
    const auto address = [](XLA_FFI_Buffer& b) { return &b; };
    std::transform(operands.begin(), operands.end(), args.begin(), address);
    std::transform(results.begin(), results.end(), rets.begin(), address);
    arg_types.fill(XLA_FFI_ArgType_BUFFER);
    ret_types.fill(XLA_FFI_RetType_BUFFER);

    XLA_FFI_InvokeContext context = {&state_, part.run};
    XLA_FFI_CallFrame frame =
        MakeFrame(XLA_FFI_ExecutionStage_EXECUTE, &context);
    frame.args.size = args.size();
    frame.args.types = arg_types.data();
    frame.args.args = args.data();
    frame.rets.size = rets.size();
    frame.rets.types = ret_types.data();
    frame.rets.rets = rets.data();
    EXPECT_EQ(OneshotHostExecute(&frame), nullptr);
    return Pending(frame.future);
  }

  // Whether a part that is done holds what it should.
  void Check(const Part& part) const {
    const int group = shape_.GroupOf(static_cast<int>(part.partition));
    for (int64_t row = 0; row < shape_.rows; ++row) {
      float largest = 0;
      for (int64_t column = 0; column < shape_.hidden; ++column) {
        const int64_t i = row * shape_.hidden + column;
        float sum = part.addend;
        for (int position = 0; position < shape_.ranks; ++position) {
          sum += X(part.run, shape_.DeviceAt(group, position), i);
        }
        ASSERT_EQ(part.sum[i], sum)
            << "run " << part.run << ", device " << part.partition;
        largest = std::max(largest, sum);
      }
      ASSERT_EQ(part.largest[row], largest);
    }
  }

 private:
  static constexpr const char* kNames[] = {"f32", "bf16", "f16"};
  static constexpr XLA_FFI_DataType kTypes[] = {
      XLA_FFI_DataType_F32, XLA_FFI_DataType_BF16, XLA_FFI_DataType_F16};
  static size_t Index(DType dtype) { return static_cast<size_t>(dtype); }

  // Small integers: their sums are exact in every type and any order.
  static float X(int64_t run, int64_t device, int64_t i) {
    return static_cast<float>((run * 7 + device * 3 + i) % 11);
  }

  Shape shape_;
  void* state_ = nullptr;
};

class HostHandlerTest : public ::testing::Test {
 protected:
  // As XLA does when a handler is registered with it.
  static void SetUpTestSuite() {
    XLA_FFI_Metadata metadata = {};
    metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
    XLA_FFI_Metadata_Extension extension = {};
    extension.extension_base.struct_size =
        XLA_FFI_Metadata_Extension_STRUCT_SIZE;
    extension.extension_base.type = XLA_FFI_Extension_Metadata;
    extension.metadata = &metadata;
    XLA_FFI_CallFrame frame =
        MakeFrame(XLA_FFI_ExecutionStage_INSTANTIATE, nullptr);
    frame.extension_start = &extension.extension_base;
    ASSERT_EQ(OneshotHostInstantiate(&frame), nullptr);
    ASSERT_NE(delete_state, nullptr);
    ASSERT_EQ(metadata.state_type_id.type_id, 1);
  }
};

// Every device is a thread and goes on as soon as its own call is done; two
// executables run on the same devices with different groups; calls come again
// within one run, as in a loop; now and then a device is late.
TEST_F(HostHandlerTest, ExecutablesAndGroupsOnThreads) {
  constexpr int kRuns = 20;
  constexpr int kIterations = 5;
  Executable all({DType::kF32, 8, 1, 3, 5});
  Executable pairs({DType::kBf16, 2, 4, 2, 9});
  std::vector<std::thread> threads;
  for (Executable* executable : {&all, &pairs}) {
    for (int device = 0; device < executable->shape().devices(); ++device) {
      threads.emplace_back([executable, device] {
        for (int run = 0; run < kRuns; ++run) {
          if ((run + device) % 8 == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
          for (int i = 0; i < kIterations; ++i) {
            Part part = executable->MakePart(run, device);
            EXPECT_EQ(executable->Execute(part).Wait(), "");
            executable->Check(part);
          }
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

// Executables come and go on several threads.
TEST_F(HostHandlerTest, ExecutablesComeAndGo) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int run = 0; run < 50; ++run) {
        Executable executable({DType::kF16, 2 + t, 1, 1, 4});
        std::vector<Part> parts;
        for (int device = 0; device < executable.shape().devices(); ++device) {
          parts.push_back(executable.MakePart(run, device));
        }
        {
          std::vector<Pending> pending;
          for (Part& part : parts) pending.push_back(executable.Execute(part));
        }
        for (const Part& part : parts) executable.Check(part);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// One thread for all: devices of several runs in any order. Nobody is done
// before the last of its group and run has come, and everybody is then.
TEST_F(HostHandlerTest, RandomShapes) {
  constexpr int kRuns = 4;       // at once
  constexpr int kReplays = 100;  // of one executable, about
  std::mt19937 random(7);
  const auto up_to = [&](int64_t most) {
    return std::uniform_int_distribution<int64_t>(0, most)(random);
  };
  int64_t done = 0;
  for (int64_t run = 0; done < replays;) {
    const int ranks = 2 + static_cast<int>(up_to(kMaxRanks - 2));
    Executable executable({static_cast<DType>(up_to(2)), ranks,
                           1 + static_cast<int>(up_to(kMaxRanks / ranks - 1)),
                           up_to(3), 1 + up_to(40)});
    const Shape& shape = executable.shape();
    for (const int64_t end = done + kReplays; done < end; run += kRuns) {
      std::vector<Part> parts;
      for (int i = 0; i < kRuns * shape.devices(); ++i) {
        parts.push_back(executable.MakePart(run + i % kRuns, i / kRuns));
      }
      std::shuffle(parts.begin(), parts.end(), random);
      std::map<std::pair<int64_t, int>, std::vector<Pending>> meetings;
      for (Part& part : parts) {
        std::vector<Pending>& meeting = meetings[{
            part.run, shape.GroupOf(static_cast<int>(part.partition))}];
        for (const Pending& pending : meeting) EXPECT_FALSE(pending.IsDone());
        meeting.push_back(executable.Execute(part));
      }
      for (const auto& [key, meeting] : meetings) {
        ASSERT_EQ(meeting.size(), shape.ranks);
        for (const Pending& pending : meeting) ASSERT_EQ(pending.Wait(), "");
      }
      for (const Part& part : parts) executable.Check(part);
      done += static_cast<int64_t>(meetings.size());
    }
  }
  std::printf("%lld replays\n", static_cast<long long>(done));
}

TEST_F(HostHandlerTest, DeviceThatComesTwiceIsTurnedAway) {
  Executable executable({DType::kF32, 2, 1, 1, 4});
  Part first = executable.MakePart(0, 0);
  Part again = executable.MakePart(0, 0);
  Part second = executable.MakePart(0, 1);
  const Pending first_done = executable.Execute(first);
  EXPECT_THAT(executable.Execute(again).Wait(),
              HasSubstr("test/psum): device 0 takes part twice"));
  EXPECT_FALSE(first_done.IsDone());
  EXPECT_EQ(executable.Execute(second).Wait(), "");
  EXPECT_EQ(first_done.Wait(), "");
  executable.Check(first);
  executable.Check(second);
}

}  // namespace
}  // namespace oneshot

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  constexpr std::string_view kFlag = "--replays=";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.substr(0, kFlag.size()) == kFlag) {
      oneshot::replays = std::atoll(argv[i] + kFlag.size());
    }
  }
  return RUN_ALL_TESTS();
}
