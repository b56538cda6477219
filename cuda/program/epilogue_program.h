// SPDX-License-Identifier: Apache-2.0
//
// What one call computes: the sum over the ranks and the elementwise operations
// and row reductions that follow it, as a list of instructions in SSA form. The
// pass writes it from HLO, the host handler interprets it, and the GPU handler
// compiles it into the kernel. Plain C++: none of them sees the others'
// headers.
//
// A call looks at all tensors as `rows` x `hidden` elements in row-major order.
// All arithmetic is float32; every instruction then rounds its result to a type
// of its own, which is how operations of the HLO in narrower types are spelled.
//
// The text form is what the custom-call's attribute `program` holds, statements
// separated by "; ":
//
//   x bf16                      type of x, what every rank contributes
//   in0 element bf16            an operand and how it spreads
//   in1 column f32 slice 16 at i0   slice number i0 of 16 stacked ones
//   v0 = sum                    of x over the ranks, in group order
//   v1 = convert.bf16 v0        a suffix names the type that it is rounded to
//   v2 = in0
//   v3 = add.bf16 v1 v2
//   v4 = multiply v3 v3         no suffix: float32, not rounded
//   v5 = reduce_sum v4          along the row
//   v6 = constant 0x1p-13
//   out0 v3 bf16                a result and the type it is stored in, which
//                               may also be f8e4m3fn, f8e5m2 or s8
#ifndef ONESHOT_CUDA_PROGRAM_EPILOGUE_PROGRAM_H_
#define ONESHOT_CUDA_PROGRAM_EPILOGUE_PROGRAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/program/float_formats.h"

namespace oneshot {

inline constexpr int kMaxOperands = 8;
inline constexpr int kMaxIndices = 4;
inline constexpr int kMaxResults = 4;
inline constexpr int kMaxInstructions = 96;
// Row reductions that depend on each other: each costs the kernel a barrier.
inline constexpr int kMaxStages = 4;

// How a value spreads over rows x hidden elements. A set of the dimensions that
// it varies along, so that the extent of an operation's result is the union.
enum class Extent : uint8_t {
  kScalar = 0,
  kRow = 1,     // one value a row
  kColumn = 2,  // one value a column: the same for every row
  kElement = kRow | kColumn,
};

constexpr Extent operator|(Extent a, Extent b) {
  return static_cast<Extent>(static_cast<uint8_t>(a) | static_cast<uint8_t>(b));
}

// Named as in HLO. Predicates are values too: comparisons and logic make them,
// logic, selection and conversion (to 0 and 1) use them.
enum class Op : uint8_t {
  kSum,       // over the ranks; the first instruction and only there
  kOperand,   // widened to float32
  kConstant,  // a float32
  kConvert,   // nothing but the rounding
  // Of one value.
  kAbs,
  kCbrt,
  kCeil,
  kCos,
  kErf,
  kExp,
  kExpm1,
  kFloor,
  kIsFinite,
  kLog,
  kLog1p,
  kLogistic,
  kNegate,
  kNot,  // of a predicate
  kRoundNearestAfz,
  kRoundNearestEven,
  kRsqrt,
  kSign,
  kSin,
  kSqrt,
  kTan,
  kTanh,
  // Of two.
  kAdd,
  kAnd,  // of predicates, as are kOr and kXor
  kAtan2,
  kDivide,
  kEq,
  kGe,
  kGt,
  kLe,
  kLt,
  kMaximum,  // NaN if either is, as are kMinimum and the reductions
  kMinimum,
  kMultiply,
  kNe,  // true for NaN
  kOr,
  kPower,
  kRemainder,  // C's fmod
  kSubtract,
  kXor,
  // Of three.
  kClamp,   // low, value, high
  kSelect,  // predicate, on true, on false
  // From an element value to a row value.
  kReduceMax,
  kReduceMin,
  kReduceSum,
};

// The number of values that an operation reads.
int Arity(Op op);
// Its name in the text form, e.g. "reduce_sum"; kOperand has none.
const char* Name(Op op);
bool IsReduction(Op op);

struct Instruction {
  Op op = Op::kConstant;
  DType round = DType::kF32;
  int inputs[3] = {-1, -1, -1};  // earlier instructions
  int operand = -1;              // of kOperand
  float constant = 0;            // of kConstant

  bool operator==(const Instruction& other) const;
};

// Something that the call reads, besides x.
struct Operand {
  Extent extent = Extent::kElement;
  DType dtype = DType::kF32;
  // 0: the operand is what is read. Otherwise it holds that many, stacked, and
  // the s32 scalar `index` says which is read, clamped to [0, slices) as a
  // dynamic-slice does.
  int64_t slices = 0;
  int index = -1;

  bool operator==(const Operand& other) const;
};

struct Result {
  int value = -1;  // an element or a row value
  DType dtype = DType::kF32;

  bool operator==(const Result& other) const;
};

struct EpilogueProgram {
  DType x = DType::kF32;
  std::vector<Operand> operands;
  int indices = 0;  // s32 scalars
  std::vector<Instruction> instructions;
  std::vector<Result> results;

  bool operator==(const EpilogueProgram& other) const;
};

// What follows from a valid program.
struct Analysis {
  std::vector<Extent> extents;   // by instruction
  std::vector<bool> predicates;  // by instruction: not a number but a truth
  // By instruction: how many row reductions, one after the other, it depends
  // on. A reduction itself belongs to the stage in which it accumulates.
  std::vector<int> stages;
  int num_stages = 1;  // one more than the reductions in the longest chain
  bool has_reduction = false;
  // Whether it matters where a row ends.
  bool needs_rows = false;
};

Analysis Analyze(const EpilogueProgram& program);

// Empty if the program can be run, else what is wrong with it.
std::string Validate(const EpilogueProgram& program);

std::string ToText(const EpilogueProgram& program);

// Returns false and says why if the text is not a valid program.
bool FromText(const std::string& text, EpilogueProgram* program,
              std::string* error);

// A name for people, e.g. "bias+residual+rms_norm"; "none" for a bare sum.
std::string Describe(const EpilogueProgram& program);

// The same as an identifier, "oneshot_all_reduce_bias_residual_rms_norm": what
// profilers call the HLO instruction and the kernel.
std::string Identifier(const EpilogueProgram& program);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_EPILOGUE_PROGRAM_H_
