// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/call_attributes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "cuda/handlers/ffi_test_attributes.h"
#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

namespace ffi = ::xla::ffi;

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kSumAndBias[] =
    "x bf16; in0 column f32; v0 = sum; v1 = in0; v2 = add v0 v1; out0 v2 bf16";
constexpr char kMaximum[] = "x bf16; v0 = sum; v1 = reduce_max v0; out0 v1 f32";
constexpr char kSliced[] =
    "x f32; in0 element f32 slice 3 at i0; in1 scalar f16; v0 = sum; v1 = in0; "
    "v2 = add v0 v1; v3 = in1; v4 = multiply v2 v3; v5 = reduce_max v4; "
    "out0 v4 f32; out1 v5 f32";

TestAttributes Valid() {
  TestAttributes attributes;
  attributes.Set("abi", kAbiVersion);
  attributes.Set("group_mode", "flattened_id");
  attributes.Set("group_size", 2);
  attributes.Set("hidden", 64);
  attributes.Set("num_partitions", 4);
  attributes.Set("program", kSumAndBias);
  attributes.Set("replica_groups", std::vector<int64_t>{3, 1, 2, 0});
  attributes.Set("rows", 8);
  attributes.Set("site", "step/mlp");
  return attributes;
}

ffi::ErrorOr<CallAttributes> Parse(TestAttributes attributes) {
  const XLA_FFI_Attrs encoded = attributes.Encode();
  return ParseCallAttributes(ffi::Dictionary(&encoded));
}

// The error of attributes that are valid but for one.
std::string ErrorWith(const std::string& name, TestAttributes::Value value) {
  TestAttributes attributes = Valid();
  attributes.Set(name, std::move(value));
  const auto parsed = Parse(attributes);
  return parsed.has_error() ? parsed.error().message() : "";
}

TEST(CallAttributesTest, Decoded) {
  const auto call = Parse(Valid());
  ASSERT_FALSE(call.has_error()) << call.error().message();
  EXPECT_EQ(call->site, "step/mlp");
  EXPECT_EQ(ToText(call->program), kSumAndBias);
  EXPECT_FALSE(call->analysis.has_reduction);
  EXPECT_EQ(call->rows, 8);
  EXPECT_EQ(call->hidden, 64);
  EXPECT_EQ(call->num_partitions, 4);
  EXPECT_EQ(call->ranks(), 2);
  EXPECT_THAT(call->groups, ElementsAre(ElementsAre(3, 1), ElementsAre(2, 0)));
}

TEST(CallAttributesTest, EachIsRequired) {
  for (const char* name :
       {"abi", "group_mode", "group_size", "hidden", "num_partitions",
        "program", "replica_groups", "rows", "site"}) {
    TestAttributes attributes = Valid();
    attributes.Remove(name);
    const auto call = Parse(attributes);
    ASSERT_TRUE(call.has_error()) << name;
    EXPECT_THAT(call.error().message(),
                HasSubstr("attribute '" + std::string(name) + "' is missing"));
  }
}

TEST(CallAttributesTest, EachHasItsType) {
  for (const char* name : {"group_mode", "program", "site"}) {
    EXPECT_THAT(ErrorWith(name, 1),
                HasSubstr("attribute '" + std::string(name) + "': "));
  }
  for (const char* name : {"abi", "group_size", "hidden", "num_partitions",
                           "replica_groups", "rows"}) {
    EXPECT_THAT(ErrorWith(name, "1"),
                HasSubstr("attribute '" + std::string(name) + "': "));
  }
}

TEST(CallAttributesTest, ErrorsNameTheSite) {
  EXPECT_THAT(ErrorWith("rows", -1),
              StartsWith("oneshot_all_reduce (step/mlp): "));
  TestAttributes attributes = Valid();
  attributes.Remove("site");
  EXPECT_THAT(Parse(attributes).error().message(),
              StartsWith("oneshot_all_reduce (unnamed site): "));
}

TEST(CallAttributesTest, AnotherVersionIsAllThatIsSaid) {
  TestAttributes attributes = Valid();
  attributes.Set("abi", kAbiVersion + 1);
  attributes.Remove("program");
  EXPECT_THAT(Parse(attributes).error().message(),
              HasSubstr("must be of one version), got " +
                        std::to_string(kAbiVersion + 1)));
}

TEST(CallAttributesTest, Shapes) {
  constexpr int64_t kMaxElements = MaxMessageBytes(kMinRanks) / 2;
  EXPECT_EQ(ErrorWith("rows", 0), "");
  EXPECT_EQ(ErrorWith("rows", kMaxElements / 64), "");
  EXPECT_THAT(ErrorWith("rows", kMaxElements / 64 + 1),
              HasSubstr("attribute 'rows': expected"));
  EXPECT_THAT(ErrorWith("rows", -1), HasSubstr("attribute 'rows': expected"));
  EXPECT_THAT(ErrorWith("rows", INT64_MAX),
              HasSubstr("attribute 'rows': expected"));
  EXPECT_THAT(ErrorWith("hidden", 0),
              HasSubstr("attribute 'hidden': expected"));
  EXPECT_THAT(ErrorWith("hidden", kMaxElements + 1),
              HasSubstr("attribute 'hidden': expected"));
}

TEST(CallAttributesTest, RowsThatAreReducedAreLimited) {
  TestAttributes attributes = Valid();
  attributes.Set("program", kMaximum);
  attributes.Set("hidden", kMaxRowBytes / 2);
  EXPECT_FALSE(Parse(attributes).has_error());
  attributes.Set("hidden", kMaxRowBytes / 2 + 1);
  EXPECT_THAT(Parse(attributes).error().message(),
              HasSubstr("because rows are reduced"));
}

TEST(CallAttributesTest, Program) {
  EXPECT_THAT(ErrorWith("program", "x bf16; v0 = sum"),
              HasSubstr("attribute 'program': "));
}

TEST(CallAttributesTest, Groups) {
  EXPECT_THAT(ErrorWith("group_mode", "cross_replica"),
              HasSubstr("expected 'flattened_id', got 'cross_replica'"));
  EXPECT_EQ(ErrorWith("num_partitions", 0), "");
  EXPECT_THAT(ErrorWith("num_partitions", -1),
              HasSubstr("attribute 'num_partitions': expected"));
  for (const int64_t size : {-2, 0, 1, 9}) {
    EXPECT_THAT(ErrorWith("group_size", size),
                HasSubstr("attribute 'group_size': expected 2 to 8"));
  }
  EXPECT_THAT(ErrorWith("group_size", 3),
              HasSubstr("expected groups of 3 ids, got 4 ids"));
  EXPECT_THAT(ErrorWith("replica_groups", std::vector<int64_t>{}),
              HasSubstr("expected groups of 2 ids, got 0 ids"));
  EXPECT_THAT(ErrorWith("replica_groups", std::vector<int64_t>{0, 1, 2, 1}),
              HasSubstr("expected distinct ids >= 0, got id 1"));
  EXPECT_THAT(ErrorWith("replica_groups", std::vector<int64_t>{0, -1}),
              HasSubstr("expected distinct ids >= 0, got id -1"));
}

// Operands and results of a call.
class TestBuffers {
 public:
  void AddOperand(XLA_FFI_DataType type, int64_t elements) {
    operands_.push_back(Buffer(type, elements));
  }
  void AddResult(XLA_FFI_DataType type, int64_t elements) {
    results_.push_back(Buffer(type, elements));
  }
  void* operand(int i) const {
    return static_cast<XLA_FFI_Buffer*>(operands_[i])->data;
  }
  void* result(int i) const {
    return static_cast<XLA_FFI_Buffer*>(results_[i])->data;
  }

  ffi::ErrorOr<BoundCall> Bind(const CallAttributes& attributes,
                               int trailing_operands = 0) {
    std::vector<XLA_FFI_ArgType> arg_types(operands_.size(),
                                           XLA_FFI_ArgType_BUFFER);
    std::vector<XLA_FFI_RetType> ret_types(results_.size(),
                                           XLA_FFI_RetType_BUFFER);
    const XLA_FFI_Args args = {XLA_FFI_Args_STRUCT_SIZE, nullptr,
                               static_cast<int64_t>(operands_.size()),
                               arg_types.data(), operands_.data()};
    const XLA_FFI_Rets rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr,
                               static_cast<int64_t>(results_.size()),
                               ret_types.data(), results_.data()};
    return BindCall(attributes, ffi::RemainingArgs(&args, 0),
                    ffi::RemainingRets(&rets, 0), trailing_operands);
  }

 private:
  void* Buffer(XLA_FFI_DataType type, int64_t elements) {
    // Nobody looks at the data: any address that no other buffer has.
    bytes_.emplace_back();
    dimensions_.push_back(elements);
    buffers_.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, type,
                        &bytes_.back(), 1, &dimensions_.back()});
    return &buffers_.back();
  }

  // Deques, because what is in them is pointed at.
  std::deque<char> bytes_;
  std::deque<int64_t> dimensions_;
  std::deque<XLA_FFI_Buffer> buffers_;
  std::vector<void*> operands_;
  std::vector<void*> results_;
};

CallAttributes Sliced() {
  TestAttributes attributes = Valid();
  attributes.Set("program", kSliced);
  attributes.Set("rows", 5);
  attributes.Set("hidden", 7);
  return *Parse(attributes);
}

// What kSliced takes, with `stacked` elements of the sliced operand.
TestBuffers SlicedBuffers(int64_t stacked) {
  TestBuffers buffers;
  buffers.AddOperand(XLA_FFI_DataType_F32, 5 * 7);
  buffers.AddOperand(XLA_FFI_DataType_F32, stacked);
  buffers.AddOperand(XLA_FFI_DataType_F16, 1);
  buffers.AddOperand(XLA_FFI_DataType_S32, 1);
  buffers.AddResult(XLA_FFI_DataType_F32, 5 * 7);
  buffers.AddResult(XLA_FFI_DataType_F32, 5);
  return buffers;
}

std::string Error(const ffi::ErrorOr<BoundCall>& call) {
  return call.has_error() ? call.error().message() : "";
}

TEST(BindCallTest, EveryBufferFindsItsPlace) {
  const CallAttributes attributes = Sliced();
  TestBuffers buffers = SlicedBuffers(3 * 5 * 7);
  const auto call = buffers.Bind(attributes);
  ASSERT_FALSE(call.has_error()) << call.error().message();
  EXPECT_EQ(call->program, &attributes.program);
  EXPECT_EQ(call->rows, 5);
  EXPECT_EQ(call->hidden, 7);
  EXPECT_EQ(call->buffers.x, buffers.operand(0));
  EXPECT_EQ(call->buffers.operands[0], buffers.operand(1));
  EXPECT_EQ(call->buffers.operands[1], buffers.operand(2));
  EXPECT_EQ(call->buffers.operands[2], nullptr);
  EXPECT_EQ(call->buffers.indices[0], buffers.operand(3));
  EXPECT_EQ(call->buffers.results[0], buffers.result(0));
  EXPECT_EQ(call->buffers.results[1], buffers.result(1));
  EXPECT_EQ(call->buffers.results[2], nullptr);
}

TEST(BindCallTest, TrailingOperandsAreTheHandlers) {
  const CallAttributes attributes = Sliced();
  TestBuffers buffers = SlicedBuffers(3 * 5 * 7);
  EXPECT_THAT(Error(buffers.Bind(attributes, 1)),
              HasSubstr("expected 5 operands, got 4"));
  buffers.AddOperand(XLA_FFI_DataType_U32, 1);
  EXPECT_EQ(Error(buffers.Bind(attributes, 1)), "");
  EXPECT_THAT(Error(buffers.Bind(attributes)),
              HasSubstr("expected 4 operands, got 5"));
}

TEST(BindCallTest, NumberOfResults) {
  TestBuffers buffers = SlicedBuffers(3 * 5 * 7);
  buffers.AddResult(XLA_FFI_DataType_F32, 5);
  EXPECT_THAT(Error(buffers.Bind(Sliced())),
              HasSubstr("expected 2 results, got 3"));
}

TEST(BindCallTest, SlicesOfTheWrongSize) {
  for (const int64_t stacked : {0, 5 * 7, 2 * 5 * 7, 3 * 5 * 7 + 1}) {
    EXPECT_THAT(Error(SlicedBuffers(stacked).Bind(Sliced())),
                HasSubstr("in0: expected 3 slices of 35 elements, got " +
                          std::to_string(stacked)));
  }
}

TEST(BindCallTest, TypesAndSizes) {
  const CallAttributes attributes = *Parse(Valid());
  struct Case {
    XLA_FFI_DataType x_type;
    int64_t x_elements;
    XLA_FFI_DataType in_type;
    int64_t in_elements;
    XLA_FFI_DataType out_type;
    int64_t out_elements;
    const char* error;
  };
  constexpr XLA_FFI_DataType kF32 = XLA_FFI_DataType_F32;
  constexpr XLA_FFI_DataType kBf16 = XLA_FFI_DataType_BF16;
  for (const Case& c : std::vector<Case>{
           {kBf16, 512, kF32, 64, kBf16, 512, ""},
           {kF32, 512, kF32, 64, kBf16, 512, "x: expected BF16, got F32"},
           {kBf16, 511, kF32, 64, kBf16, 512, "x: expected 512 elements"},
           {kBf16, 512, kBf16, 64, kBf16, 512, "in0: expected F32, got BF16"},
           {kBf16, 512, kF32, 512, kBf16, 512, "in0: expected 64 elements"},
           {kBf16, 512, kF32, 64, kF32, 512, "out0: expected BF16, got F32"},
           {kBf16, 512, kF32, 64, kBf16, 8, "out0: expected 512 elements"}}) {
    TestBuffers buffers;
    buffers.AddOperand(c.x_type, c.x_elements);
    buffers.AddOperand(c.in_type, c.in_elements);
    buffers.AddResult(c.out_type, c.out_elements);
    const std::string error = Error(buffers.Bind(attributes));
    if (*c.error == '\0') {
      EXPECT_EQ(error, "");
    } else {
      EXPECT_THAT(error, HasSubstr(c.error));
    }
  }
}

}  // namespace
}  // namespace oneshot
