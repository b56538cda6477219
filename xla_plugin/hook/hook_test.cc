// SPDX-License-Identifier: Apache-2.0
//
// The hook against a PJRT plugin of our own: registration, refusal, and that a
// module is handed on as it was whenever the pass can't be loaded.

#include "xla_plugin/hook/hook.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "xla_plugin/hook/pjrt_xla_transform.h"

namespace oneshot {
namespace {

using ::testing::HasSubstr;

struct PJRT_Error* const kNoError = nullptr;
XlaTransformRegisterArgs registered;

PJRT_Error* Register(XlaTransformRegisterArgs* args) {
  registered = *args;
  return kNoError;
}

PJRT_Error* Refuse(XlaTransformRegisterArgs*) {
  return reinterpret_cast<PJRT_Error*>(&registered);
}

// A plugin with one extension before the one that is looked for.
struct Plugin {
  XlaTransformExtension transform = {};
  PJRT_Extension_Base other = {};
  PJRT_Api api = {};

  Plugin() {
    transform.base.struct_size = sizeof(transform);
    transform.base.type =
        static_cast<PJRT_Extension_Type>(kXlaTransformExtensionType);
    transform.register_transform = Register;
    other.struct_size = sizeof(other);
    other.type = PJRT_Extension_Type_Profiler;
    other.next = &transform.base;
    api.struct_size = sizeof(api);
    api.extension_start = &other;
    api.PJRT_Error_Message = [](PJRT_Error_Message_Args* args) {
      args->message = "no more passes";
      args->message_size = std::strlen(args->message);
    };
    api.PJRT_Error_Destroy = [](PJRT_Error_Destroy_Args*) {};
  }
};

// HloModuleProto{computations: {instructions: {opcode: "all-reduce"}}}.
const std::string kModule =
    "\x1a\x0e\x12\x0c\x12\x0a"
    "all-reduce";

class HookTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    EXPECT_THAT(oneshot_hook_register(nullptr, nullptr),
                HasSubstr("configure"));
    EXPECT_EQ(oneshot_hook_configure("/nowhere/pass.so", "/nowhere", "", "", 2),
              0);
    EXPECT_NE(oneshot_hook_configure("/else/pass.so", "/else", "", "", 2), 0);
  }

  XlaTransformArgs Args() {
    XlaTransformArgs args = {};
    args.struct_size = kXlaTransformArgsSize;
    args.hlo_module = {kModule.data(), kModule.size()};
    args.changed = true;
    return args;
  }
};

TEST_F(HookTest, RegistersOnceForThePreSchedulerStage) {
  Plugin plugin;
  EXPECT_EQ(oneshot_hook_register(&plugin.api, nullptr), nullptr);
  EXPECT_EQ(std::string(registered.name, registered.name_size), "oneshot");
  EXPECT_EQ(registered.stage, kPreScheduler);
  EXPECT_EQ(registered.callbacks->version, 1);
}

TEST_F(HookTest, SaysWhyItCannotRegister) {
  Plugin without;
  without.other.next = nullptr;
  EXPECT_THAT(oneshot_hook_register(&without.api, nullptr),
              HasSubstr("no XlaTransform"));
  Plugin small;
  small.transform.base.struct_size = sizeof(PJRT_Extension_Base);
  EXPECT_THAT(oneshot_hook_register(&small.api, nullptr), HasSubstr("smaller"));
  Plugin refusing;
  refusing.transform.register_transform = Refuse;
  EXPECT_STREQ(oneshot_hook_register(&refusing.api, nullptr), "no more passes");
}

TEST_F(HookTest, ModulesStayWhenThePassCannotBeLoaded) {
  Plugin plugin;
  ASSERT_EQ(oneshot_hook_register(&plugin.api, nullptr), nullptr);
  ::testing::internal::CaptureStderr();
  // XLA compiles on several threads, and all of them want it loaded.
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this] {
      XlaTransformArgs args = Args();
      registered.callbacks->transform_hlo_module(registered.callbacks, &args);
      EXPECT_FALSE(args.changed);
      EXPECT_FALSE(args.header.has_error);
      EXPECT_EQ(args.header.cleanup_fn, nullptr);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("/nowhere"));
}

TEST_F(HookTest, RefusesArgumentsOfAnotherVersion) {
  Plugin plugin;
  ASSERT_EQ(oneshot_hook_register(&plugin.api, nullptr), nullptr);
  XlaTransformArgs args = Args();
  args.struct_size -= 8;
  ::testing::internal::CaptureStderr();
  registered.callbacks->transform_hlo_module(registered.callbacks, &args);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("bytes"));
  EXPECT_FALSE(args.changed);
}

TEST_F(HookTest, ModuleWithoutAllReduceIsNotLookedAt) {
  char* out = nullptr;
  size_t size = 0;
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(oneshot_hook_transform("Host", "", 0, &out, &size), 0);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(out, nullptr);
}

}  // namespace
}  // namespace oneshot
