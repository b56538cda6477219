// SPDX-License-Identifier: Apache-2.0
//
// What a program can see of a value in HLO: its type, whether the elements lie
// in memory row by row, and what only spells the same elements otherwise.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_HLO_VALUES_H_
#define ONESHOT_XLA_PLUGIN_MATCH_HLO_VALUES_H_

#include <cstdint>
#include <functional>
#include <optional>

#include "cuda/program/float_formats.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/shape.h"
#include "xla/xla_data.pb.h"

namespace oneshot {

// Answers whether anything may be concluded from an instruction. False for
// those whose serialized form has fields that this build does not know.
using MayAbsorb = std::function<bool(const xla::HloInstruction*)>;

// The types that a program computes with.
std::optional<DType> ToDType(xla::PrimitiveType type);
// Those, and the ones that it can store results in.
std::optional<DType> ToResultType(xla::PrimitiveType type);

bool IsFloat(const xla::HloInstruction* hlo);
bool IsPredicate(const xla::HloInstruction* hlo);

// A conversion to a type that results may have and nothing else. As a node it
// is its operand, stored in that type; nothing in the region reads it.
bool IsQuantization(const xla::HloInstruction* hlo);

// Whether a quantized value is only converted back. XLA then makes a GEMM of
// quantized operands, or drops both conversions.
bool IsConvertedBack(const xla::HloInstruction* quantized);

// Whether it is an array of known size whose elements are in memory in the
// order of their indices.
bool IsRowMajor(const xla::Shape& shape);

// -1 for what is no array.
int64_t Elements(const xla::HloInstruction* hlo);

// A reshape that keeps the order of the elements, spelled either way.
bool IsReshape(const xla::HloInstruction* hlo);
// One whose elements are in that order in memory, too.
bool IsRowMajorReshape(const xla::HloInstruction* hlo);

// A conversion that loses nothing.
bool IsWideningConvert(const xla::HloInstruction* hlo);

// How a broadcast repeats its operand.
enum class BroadcastKind {
  kNone,    // otherwise
  kShape,   // not at all: it only adds dimensions of size one
  kRows,    // each element, as a scalar is
  kColumn,  // the whole of it
};
// kNone for everything that is no broadcast.
BroadcastKind ClassifyBroadcast(const xla::HloInstruction* hlo);

// Changes neither values nor their order.
bool IsExact(const xla::HloInstruction* hlo);
// The value behind all exact instructions.
xla::HloInstruction* StripExact(xla::HloInstruction* hlo);

// The value of a constant all of whose elements are equal.
std::optional<float> ConstantValue(const xla::HloInstruction* hlo);

// The number of elements that go into one result, if a reduce takes neighbours.
std::optional<int64_t> ReducedRow(const xla::HloInstruction* reduce);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_HLO_VALUES_H_
