// SPDX-License-Identifier: Apache-2.0
#include "cuda/program/interpreter.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace oneshot {
namespace {

// Without a reduction a row may be long, and is computed in pieces of this many
// elements, so that the values of all instructions stay small.
constexpr int64_t kMaxPiece = 4096;

bool VariesAlongRow(Extent extent) {
  return (extent | Extent::kRow) == Extent::kElement;
}

float Maximum(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  if (a == b) return std::signbit(a) ? b : a;  // 0 is more than -0
  return a > b ? a : b;
}

float Minimum(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

float Sign(float a) {
  return a == 0 || std::isnan(a) ? a : std::copysign(1.0f, a);
}

// Part of one row, elements [begin, begin + size).
struct Piece {
  int64_t row;
  int64_t begin;
  int64_t size;
};

// Computes one instruction after the other for a whole piece. Truth is 1,
// falsehood 0.
class Interpreter {
 public:
  Interpreter(const EpilogueProgram& program, int64_t rows, int64_t hidden)
      : program_(program),
        analysis_(Analyze(program)),
        rows_(rows),
        hidden_(hidden),
        max_piece_(analysis_.has_reduction ? hidden
                                           : std::min(hidden, kMaxPiece)) {
    for (const Extent extent : analysis_.extents) {
      values_.emplace_back(VariesAlongRow(extent) ? max_piece_ : 1);
    }
  }

  void Run(const std::vector<Buffers>& ranks) {
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t begin = 0; begin < hidden_; begin += max_piece_) {
        const Piece piece{row, begin, std::min(max_piece_, hidden_ - begin)};
        Sum(ranks, piece);
        for (const Buffers& rank : ranks) {
          for (size_t i = 1; i < values_.size(); ++i) Compute(i, rank, piece);
          Store(rank, piece);
        }
      }
    }
  }

 private:
  // Where the part of an array begins that belongs to a piece.
  int64_t Offset(Extent extent, const Piece& piece) const {
    switch (extent) {
      case Extent::kScalar:
        return 0;
      case Extent::kRow:
        return piece.row;
      case Extent::kColumn:
        return piece.begin;
      case Extent::kElement:
        return piece.row * hidden_ + piece.begin;
    }
    return 0;
  }

  int64_t ElementCount(Extent extent) const {
    const bool by_row = (extent | Extent::kColumn) == Extent::kElement;
    return (by_row ? rows_ : 1) * (VariesAlongRow(extent) ? hidden_ : 1);
  }

  void Sum(const std::vector<Buffers>& ranks, const Piece& piece) {
    const int64_t offset = Offset(Extent::kElement, piece);
    std::vector<float>& sum = values_[0];
    for (int64_t i = 0; i < piece.size; ++i) {
      // Starts from the first rank, not from zero: -0 + -0 stays -0.
      sum[i] = LoadElement(ranks[0].x, program_.x, offset + i);
    }
    for (size_t r = 1; r < ranks.size(); ++r) {
      for (int64_t i = 0; i < piece.size; ++i) {
        sum[i] += LoadElement(ranks[r].x, program_.x, offset + i);
      }
    }
    Round(0);
  }

  void Load(const Instruction& v, const Buffers& rank, const Piece& piece,
            std::vector<float>& out) const {
    const Operand& operand = program_.operands[v.operand];
    int64_t offset = Offset(operand.extent, piece);
    if (operand.slices != 0) {
      const int64_t slice = std::clamp<int64_t>(*rank.indices[operand.index], 0,
                                                operand.slices - 1);
      offset += slice * ElementCount(operand.extent);
    }
    const int64_t size = VariesAlongRow(operand.extent) ? piece.size : 1;
    for (int64_t i = 0; i < size; ++i) {
      out[i] = LoadElement(rank.operands[v.operand], operand.dtype, offset + i);
    }
  }

  void Store(const Buffers& rank, const Piece& piece) const {
    for (size_t r = 0; r < program_.results.size(); ++r) {
      const Result& result = program_.results[r];
      const Extent extent = analysis_.extents[result.value];
      const int64_t offset = Offset(extent, piece);
      const int64_t size = VariesAlongRow(extent) ? piece.size : 1;
      for (int64_t i = 0; i < size; ++i) {
        StoreElement(rank.results[r], result.dtype, offset + i,
                     values_[result.value][i]);
      }
    }
  }

  void Round(size_t index) {
    const DType dtype = program_.instructions[index].round;
    if (dtype == DType::kF32) return;
    for (float& value : values_[index]) value = RoundTo(dtype, value);
  }

  void Compute(size_t index, const Buffers& rank, const Piece& piece) {
    const Instruction& v = program_.instructions[index];
    std::vector<float>& out = values_[index];
    const int64_t size =
        VariesAlongRow(analysis_.extents[index]) ? piece.size : 1;

    // An input, and how far its next value is: zero where it is the same one.
    const float* inputs[3] = {};
    int64_t steps[3] = {};
    for (int i = 0; i < Arity(v.op); ++i) {
      inputs[i] = values_[v.inputs[i]].data();
      steps[i] = VariesAlongRow(analysis_.extents[v.inputs[i]]) ? 1 : 0;
    }
    const auto one = [&](auto f) {
      for (int64_t i = 0; i < size; ++i) out[i] = f(inputs[0][i * steps[0]]);
    };
    const auto two = [&](auto f) {
      for (int64_t i = 0; i < size; ++i) {
        out[i] = f(inputs[0][i * steps[0]], inputs[1][i * steps[1]]);
      }
    };
    const auto three = [&](auto f) {
      for (int64_t i = 0; i < size; ++i) {
        out[i] = f(inputs[0][i * steps[0]], inputs[1][i * steps[1]],
                   inputs[2][i * steps[2]]);
      }
    };
    const auto reduce = [&](auto initial, auto f) {
      auto value = initial;
      for (int64_t i = 0; i < piece.size; ++i) value = f(value, inputs[0][i]);
      out[0] = static_cast<float>(value);
    };

    switch (v.op) {
      case Op::kSum:
        break;  // shared by the ranks, and done
      case Op::kOperand:
        Load(v, rank, piece, out);
        break;
      case Op::kConstant:
        out[0] = v.constant;
        break;
      case Op::kConvert:
        one([](float a) { return a; });
        break;
      case Op::kAbs:
        one([](float a) { return std::fabs(a); });
        break;
      case Op::kCbrt:
        one([](float a) { return std::cbrt(a); });
        break;
      case Op::kCeil:
        one([](float a) { return std::ceil(a); });
        break;
      case Op::kCos:
        one([](float a) { return std::cos(a); });
        break;
      case Op::kErf:
        one([](float a) { return std::erf(a); });
        break;
      case Op::kExp:
        one([](float a) { return std::exp(a); });
        break;
      case Op::kExpm1:
        one([](float a) { return std::expm1(a); });
        break;
      case Op::kFloor:
        one([](float a) { return std::floor(a); });
        break;
      case Op::kIsFinite:
        one([](float a) { return std::isfinite(a); });
        break;
      case Op::kLog:
        one([](float a) { return std::log(a); });
        break;
      case Op::kLog1p:
        one([](float a) { return std::log1p(a); });
        break;
      case Op::kLogistic:
        one([](float a) { return 1.0f / (1.0f + std::exp(-a)); });
        break;
      case Op::kNegate:
        one([](float a) { return -a; });
        break;
      case Op::kNot:
        one([](float a) { return a == 0; });
        break;
      case Op::kRoundNearestAfz:
        one([](float a) { return std::round(a); });
        break;
      case Op::kRoundNearestEven:
        one([](float a) { return std::nearbyint(a); });
        break;
      case Op::kRsqrt:
        one([](float a) { return 1.0f / std::sqrt(a); });
        break;
      case Op::kSign:
        one(Sign);
        break;
      case Op::kSin:
        one([](float a) { return std::sin(a); });
        break;
      case Op::kSqrt:
        one([](float a) { return std::sqrt(a); });
        break;
      case Op::kTan:
        one([](float a) { return std::tan(a); });
        break;
      case Op::kTanh:
        one([](float a) { return std::tanh(a); });
        break;
      case Op::kAdd:
        two([](float a, float b) { return a + b; });
        break;
      case Op::kAnd:
        two([](float a, float b) { return a != 0 && b != 0; });
        break;
      case Op::kAtan2:
        two([](float a, float b) { return std::atan2(a, b); });
        break;
      case Op::kDivide:
        two([](float a, float b) { return a / b; });
        break;
      case Op::kEq:
        two([](float a, float b) { return a == b; });
        break;
      case Op::kGe:
        two([](float a, float b) { return a >= b; });
        break;
      case Op::kGt:
        two([](float a, float b) { return a > b; });
        break;
      case Op::kLe:
        two([](float a, float b) { return a <= b; });
        break;
      case Op::kLt:
        two([](float a, float b) { return a < b; });
        break;
      case Op::kMaximum:
        two(Maximum);
        break;
      case Op::kMinimum:
        two(Minimum);
        break;
      case Op::kMultiply:
        two([](float a, float b) { return a * b; });
        break;
      case Op::kNe:
        two([](float a, float b) { return a != b; });
        break;
      case Op::kOr:
        two([](float a, float b) { return a != 0 || b != 0; });
        break;
      case Op::kPower:
        two([](float a, float b) { return std::pow(a, b); });
        break;
      case Op::kRemainder:
        two([](float a, float b) { return std::fmod(a, b); });
        break;
      case Op::kSubtract:
        two([](float a, float b) { return a - b; });
        break;
      case Op::kXor:
        two([](float a, float b) { return a != b; });
        break;
      case Op::kClamp:
        three([](float low, float a, float high) {
          return Minimum(Maximum(low, a), high);
        });
        break;
      case Op::kSelect:
        three([](float predicate, float on_true, float on_false) {
          return predicate != 0 ? on_true : on_false;
        });
        break;
      case Op::kReduceMax:
        reduce(-INFINITY, Maximum);
        break;
      case Op::kReduceMin:
        reduce(INFINITY, Minimum);
        break;
      case Op::kReduceSum:
        // In float64: the order of the sum is not part of the semantics.
        reduce(0.0, [](double sum, float a) { return sum + a; });
        break;
    }
    Round(index);
  }

  const EpilogueProgram& program_;
  const Analysis analysis_;
  const int64_t rows_;
  const int64_t hidden_;
  const int64_t max_piece_;
  std::vector<std::vector<float>> values_;  // by instruction
};

}  // namespace

float LoadElement(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kBf16:
      return DecodeBf16(static_cast<const uint16_t*>(data)[index]);
    case DType::kF16:
      return DecodeF16(static_cast<const uint16_t*>(data)[index]);
    case DType::kF8E4M3FN:
      return DecodeF8E4M3FN(static_cast<const uint8_t*>(data)[index]);
    case DType::kF8E5M2:
      return DecodeF8E5M2(static_cast<const uint8_t*>(data)[index]);
    case DType::kS8:
      return static_cast<const int8_t*>(data)[index];
  }
  return 0;
}

void StoreElement(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kBf16:
      static_cast<uint16_t*>(data)[index] = EncodeBf16(value);
      return;
    case DType::kF16:
      static_cast<uint16_t*>(data)[index] = EncodeF16(value);
      return;
    case DType::kF8E4M3FN:
      static_cast<uint8_t*>(data)[index] =
          static_cast<uint8_t>(EncodeF8E4M3FN(Bits(value)));
      return;
    case DType::kF8E5M2:
      static_cast<uint8_t*>(data)[index] =
          static_cast<uint8_t>(EncodeF8E5M2(Bits(value)));
      return;
    case DType::kS8:
      static_cast<uint8_t*>(data)[index] =
          static_cast<uint8_t>(EncodeS8(value));
      return;
  }
}

void AllReduceOnHost(const EpilogueProgram& program, int64_t rows,
                     int64_t hidden, const std::vector<Buffers>& ranks) {
  Interpreter(program, rows, hidden).Run(ranks);
}

}  // namespace oneshot
