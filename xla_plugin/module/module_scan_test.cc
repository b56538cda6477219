// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/module_scan.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/string_view.h"
#include "xla/service/hlo.pb.h"
#include "xla_plugin/testing/module_protos.h"

namespace oneshot {
namespace {

TEST(ModuleScanTest, FindsAllReducesOnly) {
  xla::HloModuleProto proto = Proto();
  EXPECT_TRUE(HasAllReduce(proto.SerializeAsString()));
  Find(proto, "ar")->set_opcode("all-reduce-start");
  EXPECT_TRUE(HasAllReduce(proto.SerializeAsString()));
  // Only the opcode counts: not a name, not a constant's bytes.
  Find(proto, "ar")->set_opcode("copy");
  Find(proto, "ar")->set_name("all-reduce");
  EXPECT_FALSE(HasAllReduce(proto.SerializeAsString()));
}

TEST(ModuleScanTest, SurvivesAnyBytes) {
  const std::string module = Proto().SerializeAsString();
  for (size_t i = 0; i < module.size(); ++i) {
    HasAllReduce(absl::string_view(module).substr(0, i));
    std::string bent = module;
    bent[i] = static_cast<char>(~bent[i]);
    HasAllReduce(bent);
  }
  EXPECT_FALSE(HasAllReduce(""));
  EXPECT_FALSE(HasAllReduce("\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
}

}  // namespace
}  // namespace oneshot
