// SPDX-License-Identifier: Apache-2.0
#include "cuda/program/epilogue_program.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

namespace oneshot {
namespace {

enum class Takes : uint8_t {
  kNumbers,
  kPredicates,
  kEither,
  kPredicateAndNumbers,  // the first one is the predicate
};

struct OpTraits {
  Op op;
  const char* name;
  int arity;
  Takes takes = Takes::kNumbers;
  bool gives_predicate = false;
};

constexpr OpTraits kOps[] = {
    {Op::kSum, "sum", 0},
    {Op::kOperand, "", 0},
    {Op::kConstant, "constant", 0},
    {Op::kConvert, "convert", 1, Takes::kEither},
    {Op::kAbs, "abs", 1},
    {Op::kCbrt, "cbrt", 1},
    {Op::kCeil, "ceil", 1},
    {Op::kCos, "cos", 1},
    {Op::kErf, "erf", 1},
    {Op::kExp, "exp", 1},
    {Op::kExpm1, "expm1", 1},
    {Op::kFloor, "floor", 1},
    {Op::kIsFinite, "is_finite", 1, Takes::kNumbers, true},
    {Op::kLog, "log", 1},
    {Op::kLog1p, "log1p", 1},
    {Op::kLogistic, "logistic", 1},
    {Op::kNegate, "negate", 1},
    {Op::kNot, "not", 1, Takes::kPredicates, true},
    {Op::kRoundNearestAfz, "round_nearest_afz", 1},
    {Op::kRoundNearestEven, "round_nearest_even", 1},
    {Op::kRsqrt, "rsqrt", 1},
    {Op::kSign, "sign", 1},
    {Op::kSin, "sin", 1},
    {Op::kSqrt, "sqrt", 1},
    {Op::kTan, "tan", 1},
    {Op::kTanh, "tanh", 1},
    {Op::kAdd, "add", 2},
    {Op::kAnd, "and", 2, Takes::kPredicates, true},
    {Op::kAtan2, "atan2", 2},
    {Op::kDivide, "divide", 2},
    {Op::kEq, "eq", 2, Takes::kNumbers, true},
    {Op::kGe, "ge", 2, Takes::kNumbers, true},
    {Op::kGt, "gt", 2, Takes::kNumbers, true},
    {Op::kLe, "le", 2, Takes::kNumbers, true},
    {Op::kLt, "lt", 2, Takes::kNumbers, true},
    {Op::kMaximum, "maximum", 2},
    {Op::kMinimum, "minimum", 2},
    {Op::kMultiply, "multiply", 2},
    {Op::kNe, "ne", 2, Takes::kNumbers, true},
    {Op::kOr, "or", 2, Takes::kPredicates, true},
    {Op::kPower, "power", 2},
    {Op::kRemainder, "remainder", 2},
    {Op::kSubtract, "subtract", 2},
    {Op::kXor, "xor", 2, Takes::kPredicates, true},
    {Op::kClamp, "clamp", 3},
    {Op::kSelect, "select", 3, Takes::kPredicateAndNumbers},
    {Op::kReduceMax, "reduce_max", 1},
    {Op::kReduceMin, "reduce_min", 1},
    {Op::kReduceSum, "reduce_sum", 1},
};

constexpr bool IsIndexedByOp() {
  int index = 0;
  for (const OpTraits& traits : kOps) {
    if (static_cast<int>(traits.op) != index++) return false;
  }
  return index == static_cast<int>(Op::kReduceSum) + 1;
}
static_assert(IsIndexedByOp());

const OpTraits& Traits(Op op) { return kOps[static_cast<int>(op)]; }

constexpr const char* kDTypeNames[] = {"f32",      "bf16",   "f16",
                                       "f8e4m3fn", "f8e5m2", "s8"};
constexpr const char* kExtentNames[] = {"scalar", "row", "column", "element"};

std::string Name(DType dtype) { return kDTypeNames[static_cast<int>(dtype)]; }
std::string Name(Extent extent) {
  return kExtentNames[static_cast<int>(extent)];
}

std::string Numbered(const char* prefix, int64_t number) {
  return prefix + std::to_string(number);
}

// Constants are hexadecimal, normalised as by "%a": 0x1.8p-2. Both directions
// are spelled out because those of the C library depend on the locale.

std::string FormatConstant(float value) {
  if (std::isnan(value)) return "nan";
  const std::string sign = std::signbit(value) ? "-" : "";
  if (std::isinf(value)) return sign + "inf";
  if (value == 0) return sign + "0x0p+0";
  int exponent;
  const float significand = std::frexp(std::fabs(value), &exponent);
  // A leading one and six digits, of which the last holds three bits.
  const auto digits = static_cast<uint32_t>(std::ldexp(significand, 25));
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), ".%06x", digits & 0xFFFFFFu);
  std::string fraction = buffer;
  fraction.erase(fraction.find_last_not_of('0') + 1);
  if (fraction == ".") fraction.clear();
  std::snprintf(buffer, sizeof(buffer), "p%+d", exponent - 1);
  return sign + "0x1" + fraction + buffer;
}

bool ConsumePrefix(std::string_view* text, std::string_view prefix) {
  if (text->substr(0, prefix.size()) != prefix) return false;
  text->remove_prefix(prefix.size());
  return true;
}

// Decimal digits only, in the one way to write the number.
std::optional<int64_t> ParseNumber(std::string_view text) {
  constexpr size_t kMaxDigits = 18;  // any such number fits
  if (text.empty() || text.size() > kMaxDigits) return std::nullopt;
  if (text[0] == '0' && text.size() > 1) return std::nullopt;
  int64_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    number = 10 * number + (c - '0');
  }
  return number;
}

std::optional<int> HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return std::nullopt;
}

// Takes every hexadecimal spelling of a float32, and nothing that would have to
// be rounded to one.
std::optional<float> ParseConstant(std::string_view text) {
  if (text == "nan") return std::nanf("");
  const bool negative = ConsumePrefix(&text, "-");
  const float sign = negative ? -1.0f : 1.0f;
  if (text == "inf") return sign * INFINITY;
  if (!ConsumePrefix(&text, "0x")) return std::nullopt;

  constexpr int kMaxDigits = 16;  // of 64 bits
  uint64_t significand = 0;
  int64_t exponent = 0;
  int digits = 0;
  bool in_fraction = false;
  for (; !text.empty() && text[0] != 'p'; text.remove_prefix(1)) {
    if (text[0] == '.' && !in_fraction) {
      in_fraction = true;
      continue;
    }
    const std::optional<int> digit = HexDigit(text[0]);
    if (!digit || ++digits > kMaxDigits) return std::nullopt;
    significand = significand << 4 | static_cast<uint64_t>(*digit);
    if (in_fraction) exponent -= 4;
  }
  if (digits == 0 || !ConsumePrefix(&text, "p")) return std::nullopt;
  const bool negative_power = ConsumePrefix(&text, "-");
  if (!negative_power) ConsumePrefix(&text, "+");
  const std::optional<int64_t> power = ParseNumber(text);
  constexpr int kMaxPower = 500;  // what a double can hold exactly below
  if (!power || *power > kMaxPower) return std::nullopt;
  exponent += negative_power ? -*power : *power;

  if (significand == 0) return sign * 0.0f;
  for (; significand % 2 == 0; significand /= 2) ++exponent;
  if (significand >> 24 != 0) return std::nullopt;
  const double exact =
      std::ldexp(static_cast<double>(significand), static_cast<int>(exponent));
  if (exact > 0x1.fffffep127) return std::nullopt;
  const float value = static_cast<float>(exact);
  if (value != exact) return std::nullopt;
  return sign * value;
}

std::vector<std::string_view> Split(std::string_view text,
                                    std::string_view separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + separator.size());
  }
}

template <typename Enum, size_t kSize>
std::optional<Enum> ParseName(const char* const (&names)[kSize],
                              std::string_view name) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) return std::nullopt;
  return static_cast<Enum>(found - std::begin(names));
}

// Reads statements into a program; what it means is for Validate to judge.
class Parser {
 public:
  explicit Parser(EpilogueProgram* program) : program_(*program) {}

  // Empty, or why the statement is none.
  std::string Parse(std::string_view statement) {
    words_ = Split(statement, " ");
    const std::string_view subject = words_[0];
    if (!seen_x_) {
      if (subject != "x") return "expected 'x' first";
      seen_x_ = true;
      return ParseX();
    }
    if (subject == Numbered("in", program_.operands.size()) &&
        program_.instructions.empty()) {
      return ParseOperand();
    }
    if (subject == Numbered("v", program_.instructions.size()) &&
        program_.results.empty()) {
      return ParseInstruction();
    }
    if (subject == Numbered("out", program_.results.size())) {
      return ParseResult();
    }
    return "expected " + Numbered("in", program_.operands.size()) + ", " +
           Numbered("v", program_.instructions.size()) + " or " +
           Numbered("out", program_.results.size()) +
           ", operands before instructions before results";
  }

 private:
  static std::optional<DType> ParseDType(std::string_view name) {
    return ParseName<DType>(kDTypeNames, name);
  }

  // The number after the prefix if it is below `bound`.
  static std::optional<int> ParseNumbered(std::string_view prefix,
                                          std::string_view word,
                                          int64_t bound) {
    if (!ConsumePrefix(&word, prefix)) return std::nullopt;
    const std::optional<int64_t> number = ParseNumber(word);
    if (!number || *number >= bound) return std::nullopt;
    return static_cast<int>(*number);
  }

  std::string ParseX() {
    const auto dtype =
        words_.size() == 2 ? ParseDType(words_[1]) : std::nullopt;
    if (!dtype) return "expected 'x f32', 'x bf16' or 'x f16'";
    program_.x = *dtype;
    return "";
  }

  std::string ParseOperand() {
    if (words_.size() != 3 && words_.size() != 7) {
      return "expected an extent, a type and possibly 'slice N at iK'";
    }
    const auto extent = ParseName<Extent>(kExtentNames, words_[1]);
    if (!extent) return "expected scalar, row, column or element";
    const auto dtype = ParseDType(words_[2]);
    if (!dtype) return "expected f32, bf16 or f16";
    Operand operand{*extent, *dtype};
    if (words_.size() == 7) {
      const auto slices = ParseNumber(words_[4]);
      const auto index = ParseNumbered("i", words_[6], kMaxIndices);
      if (words_[3] != "slice" || words_[5] != "at" || !slices ||
          *slices == 0 || !index) {
        return "expected 'slice N at iK', N at least 1 and K below " +
               std::to_string(kMaxIndices);
      }
      operand.slices = *slices;
      operand.index = *index;
      program_.indices = std::max(program_.indices, *index + 1);
    }
    program_.operands.push_back(operand);
    return "";
  }

  std::string ParseInstruction() {
    if (words_.size() < 3 || words_[1] != "=") return "expected an operation";
    Instruction instruction;
    std::string_view name = words_[2];
    const std::optional<int> operand =
        ParseNumbered("in", name, std::numeric_limits<int>::max());
    size_t expected_words = 3;
    if (operand) {
      instruction.op = Op::kOperand;
      instruction.operand = *operand;
    } else {
      const size_t dot = name.find('.');
      if (dot != std::string_view::npos) {
        const auto round = ParseDType(name.substr(dot + 1));
        // float32 is what there is without a suffix.
        if (!round || *round == DType::kF32) {
          return "expected the suffix .bf16, .f16 or none";
        }
        instruction.round = *round;
        name = name.substr(0, dot);
      }
      const auto traits =
          std::find_if(std::begin(kOps), std::end(kOps),
                       [&](const OpTraits& op) { return op.name == name; });
      if (name.empty() || traits == std::end(kOps)) {
        return "unknown operation '" + std::string(name) + "'";
      }
      instruction.op = traits->op;
      expected_words +=
          traits->op == Op::kConstant ? 1 : static_cast<size_t>(traits->arity);
    }
    if (words_.size() != expected_words) {
      return "expected " + std::to_string(expected_words - 3) + " inputs";
    }
    if (instruction.op == Op::kConstant) {
      const auto constant = ParseConstant(words_[3]);
      if (!constant) return "expected a hexadecimal float32, inf or nan";
      instruction.constant = *constant;
    }
    for (int i = 0; i < Arity(instruction.op); ++i) {
      const auto input =
          ParseNumbered("v", words_[3 + i],
                        static_cast<int64_t>(program_.instructions.size()));
      if (!input) return "expected earlier values as inputs";
      instruction.inputs[i] = *input;
    }
    program_.instructions.push_back(instruction);
    return "";
  }

  std::string ParseResult() {
    const auto value =
        words_.size() == 3
            ? ParseNumbered("v", words_[1],
                            static_cast<int64_t>(program_.instructions.size()))
            : std::nullopt;
    const auto dtype =
        words_.size() == 3 ? ParseDType(words_[2]) : std::nullopt;
    if (!value || !dtype) return "expected a value and a type";
    program_.results.push_back({*value, *dtype});
    return "";
  }

  EpilogueProgram& program_;
  std::vector<std::string_view> words_;
  bool seen_x_ = false;
};

std::string CheckOperands(const EpilogueProgram& program) {
  const auto size = static_cast<int>(program.operands.size());
  if (size > kMaxOperands) {
    return std::to_string(size) + " operands, the limit is " +
           std::to_string(kMaxOperands);
  }
  if (program.indices < 0 || program.indices > kMaxIndices) {
    return std::to_string(program.indices) + " indices, the limit is " +
           std::to_string(kMaxIndices);
  }
  for (int i = 0; i < size; ++i) {
    const Operand& operand = program.operands[i];
    if (IsQuantized(operand.dtype)) {
      return Numbered("in", i) + ": " + Name(operand.dtype) +
             " is for results only";
    }
    const bool sliced = operand.slices != 0;
    if (operand.slices < 0 ||
        (sliced ? operand.index < 0 || operand.index >= program.indices
                : operand.index != -1)) {
      return Numbered("in", i) + ": slice " + std::to_string(operand.slices) +
             " at " + Numbered("i", operand.index);
    }
    const bool used =
        std::any_of(program.instructions.begin(), program.instructions.end(),
                    [&](const Instruction& v) { return v.operand == i; });
    if (!used) return Numbered("in", i) + " is not used";
  }
  for (int i = 0; i < program.indices; ++i) {
    const bool used =
        std::any_of(program.operands.begin(), program.operands.end(),
                    [&](const Operand& operand) { return operand.index == i; });
    if (!used) return Numbered("i", i) + " is not used";
  }
  return "";
}

// What an instruction refers to, so that the program can be analyzed.
std::string CheckReferences(const EpilogueProgram& program, int index) {
  const Instruction& v = program.instructions[index];
  if ((v.op == Op::kSum) != (index == 0)) {
    return "the sum must be the first instruction and only that";
  }
  for (int i = 0; i < 3; ++i) {
    if (i < Arity(v.op) ? v.inputs[i] < 0 || v.inputs[i] >= index
                        : v.inputs[i] != -1) {
      return "expected " + std::to_string(Arity(v.op)) +
             " inputs, earlier values";
    }
  }
  if (v.op == Op::kOperand
          ? v.operand < 0 ||
                v.operand >= static_cast<int>(program.operands.size())
          : v.operand != -1) {
    return "no operand " + std::to_string(v.operand);
  }
  if (v.op != Op::kConstant && Bits(v.constant) != 0) {
    return "only a constant has a constant";
  }
  return "";
}

std::string CheckTypes(const EpilogueProgram& program, const Analysis& analysis,
                       int index) {
  const Instruction& v = program.instructions[index];
  if (IsQuantized(v.round)) return Name(v.round) + " is for results only";
  const Takes takes = Traits(v.op).takes;
  for (int i = 0; i < Arity(v.op); ++i) {
    if (takes == Takes::kEither) continue;
    const bool want = takes == Takes::kPredicates ||
                      (takes == Takes::kPredicateAndNumbers && i == 0);
    if (analysis.predicates[v.inputs[i]] != want) {
      return Numbered("v", v.inputs[i]) +
             (want ? " is not a predicate" : " is a predicate");
    }
  }
  if (v.round != DType::kF32 &&
      (analysis.predicates[index] || v.op == Op::kOperand)) {
    return "predicates and operands are not rounded";
  }
  if (IsReduction(v.op) && analysis.extents[v.inputs[0]] != Extent::kElement) {
    return "a reduction needs an element value, " + Numbered("v", v.inputs[0]) +
           " is a " + Name(analysis.extents[v.inputs[0]]) + " value";
  }
  return "";
}

std::string CheckResult(const EpilogueProgram& program,
                        const Analysis& analysis, const Result& result) {
  if (result.value < 0 ||
      result.value >= static_cast<int>(program.instructions.size())) {
    return "no value " + Numbered("v", result.value);
  }
  const std::string name = Numbered("v", result.value);
  if (analysis.predicates[result.value]) return name + " is a predicate";
  const Extent extent = analysis.extents[result.value];
  if (extent != Extent::kElement && extent != Extent::kRow) {
    return name + " is a " + Name(extent) + " value, expected element or row";
  }
  return "";
}

// Finds the names for Describe. Only those of norms need looking at more than
// one instruction.
class Describer {
 public:
  explicit Describer(const EpilogueProgram& program)
      : program_(program),
        analysis_(Analyze(program)),
        size_(static_cast<int>(program.instructions.size())),
        from_sum_(size_),
        in_norm_(size_),
        statistic_(size_),
        names_(size_) {}

  std::string Describe() {
    FindNorms();
    std::vector<std::string> names;
    const auto add = [&](const std::string& name, bool once) {
      if (once && std::find(names.begin(), names.end(), name) != names.end()) {
        return;
      }
      names.push_back(name);
    };
    for (int i = 0; i < size_; ++i) {
      const Instruction& v = program_.instructions[i];
      from_sum_[i] = v.op == Op::kSum || AnyInput(v, from_sum_);
      if (!from_sum_[i] || v.op == Op::kSum) continue;
      if (!in_norm_[i]) ContinueNorm(i);
      if (!names_[i].empty()) {
        add(names_[i], /*once=*/false);
      } else if (in_norm_[i] || v.op == Op::kConvert) {
        continue;
      } else if (IsReduction(v.op)) {
        add(v.op == Op::kReduceSum   ? "row_sum"
            : v.op == Op::kReduceMax ? "row_max"
                                     : "row_min",
            /*once=*/true);
      } else if (v.op == Op::kAdd && HasOther(v, Extent::kElement)) {
        add("residual", /*once=*/false);
      } else if (v.op == Op::kAdd && HasOther(v, Extent::kColumn)) {
        add("bias", /*once=*/false);
      } else {
        add(oneshot::Name(v.op), /*once=*/true);
      }
    }
    for (const Result& result : program_.results) {
      if (IsQuantized(result.dtype)) add(Name(result.dtype), /*once=*/true);
    }
    std::string description;
    for (const std::string& name : names) {
      description += (description.empty() ? "" : "+") + name;
    }
    return description.empty() ? "none" : description;
  }

 private:
  const Instruction& At(int value) const {
    return program_.instructions[value];
  }

  // The value without the conversions that it went through.
  int Origin(int value) const {
    while (At(value).op == Op::kConvert) value = At(value).inputs[0];
    return value;
  }

  bool AnyInput(const Instruction& v, const std::vector<bool>& set) const {
    return std::any_of(v.inputs, v.inputs + Arity(v.op),
                       [&](int input) { return set[input]; });
  }

  // What is squared, or -1.
  int SquareRoot(int value) const {
    const Instruction& v = At(Origin(value));
    if (v.op == Op::kMultiply && Origin(v.inputs[0]) == Origin(v.inputs[1])) {
      return Origin(v.inputs[0]);
    }
    if (v.op == Op::kPower && At(Origin(v.inputs[1])).constant == 2) {
      return Origin(v.inputs[0]);
    }
    return -1;
  }

  // Names norms at the first of their reductions, and marks the reductions and
  // what is reduced.
  void FindNorms() {
    std::vector<int> previous;  // the reductions of the stage before
    for (int stage = 0; stage < analysis_.num_stages; ++stage) {
      std::vector<int> sums;
      bool others = false;
      for (int i = 0; i < size_; ++i) {
        if (!IsReduction(At(i).op) || analysis_.stages[i] != stage) continue;
        sums.push_back(i);
        others |= At(i).op != Op::kReduceSum;
      }
      if (!others && sums.size() == 1) {
        const int root = SquareRoot(At(sums[0]).inputs[0]);
        if (root >= 0) {
          MarkNorm(sums[0], "rms_norm");
          // The root is the deviation from a mean, found one stage earlier.
          if (previous.size() == 1 && names_[previous[0]].empty() &&
              At(previous[0]).op == Op::kReduceSum && IsDeviation(root)) {
            names_[sums[0]].clear();
            MarkNorm(previous[0], "layer_norm");
          }
        }
      } else if (!others && sums.size() == 2) {
        for (const auto& [mean, square] :
             {std::pair(sums[0], sums[1]), std::pair(sums[1], sums[0])}) {
          if (SquareRoot(At(square).inputs[0]) != Origin(At(mean).inputs[0])) {
            continue;
          }
          MarkNorm(square, "");
          MarkNorm(mean, "");
          names_[sums[0]] = "layer_norm";
          break;
        }
      }
      previous = sums;
    }
  }

  bool IsDeviation(int value) const {
    const Instruction& v = At(value);
    if (v.op != Op::kSubtract && v.op != Op::kAdd) return false;
    return std::any_of(v.inputs, v.inputs + 2, [&](int input) {
      return analysis_.extents[input] == Extent::kRow &&
             analysis_.stages[input] == analysis_.stages[value];
    });
  }

  void MarkNorm(int reduction, const char* name) {
    names_[reduction] = name;
    in_norm_[reduction] = statistic_[reduction] = true;
    const int input = Origin(At(reduction).inputs[0]);
    if (SquareRoot(input) >= 0) in_norm_[input] = true;
  }

  // Marks an instruction that belongs to the norm that an input belongs to: the
  // work on the row's statistics, their use, and then gain and offset.
  void ContinueNorm(int index) {
    const Instruction& v = At(index);
    if (IsReduction(v.op)) return;
    if (AnyInput(v, statistic_)) {
      in_norm_[index] = true;
      // Also with the gain, which may be multiplied in before the value is.
      statistic_[index] = std::all_of(
          v.inputs, v.inputs + Arity(v.op),
          [&](int input) { return statistic_[input] || !from_sum_[input]; });
    } else if (AnyInput(v, in_norm_)) {
      in_norm_[index] = v.op == Op::kConvert ||
                        ((v.op == Op::kMultiply || v.op == Op::kAdd) &&
                         HasOther(v, Extent::kColumn));
    }
  }

  // Of two inputs, one comes from elsewhere and spreads like this.
  bool HasOther(const Instruction& v, Extent extent) const {
    return std::any_of(v.inputs, v.inputs + 2, [&](int input) {
      return !from_sum_[input] && analysis_.extents[input] == extent;
    });
  }

  const EpilogueProgram& program_;
  const Analysis analysis_;
  const int size_;
  std::vector<bool> from_sum_;
  std::vector<bool> in_norm_;
  std::vector<bool> statistic_;     // in a norm, but not what is normalised
  std::vector<std::string> names_;  // of norms, where they begin
};

}  // namespace

int Arity(Op op) { return Traits(op).arity; }
const char* Name(Op op) { return Traits(op).name; }
bool IsReduction(Op op) { return op >= Op::kReduceMax; }

bool Instruction::operator==(const Instruction& other) const {
  // As in the text form: zeros differ by their sign, and NaN is NaN.
  const bool same_constant =
      Bits(constant) == Bits(other.constant) ||
      (std::isnan(constant) && std::isnan(other.constant));
  return op == other.op && round == other.round &&
         std::equal(inputs, inputs + 3, other.inputs) &&
         operand == other.operand && same_constant;
}

bool Operand::operator==(const Operand& other) const {
  return extent == other.extent && dtype == other.dtype &&
         slices == other.slices && index == other.index;
}

bool Result::operator==(const Result& other) const {
  return value == other.value && dtype == other.dtype;
}

bool EpilogueProgram::operator==(const EpilogueProgram& other) const {
  return x == other.x && operands == other.operands &&
         indices == other.indices && instructions == other.instructions &&
         results == other.results;
}

Analysis Analyze(const EpilogueProgram& program) {
  Analysis analysis;
  for (const Instruction& v : program.instructions) {
    Extent extent = Extent::kScalar;
    int stage = 0;
    for (int i = 0; i < Arity(v.op); ++i) {
      const int input = v.inputs[i];
      extent = extent | analysis.extents[input];
      const bool after = IsReduction(program.instructions[input].op);
      stage = std::max(stage, analysis.stages[input] + (after ? 1 : 0));
    }
    if (v.op == Op::kSum) extent = Extent::kElement;
    if (v.op == Op::kOperand) extent = program.operands[v.operand].extent;
    if (IsReduction(v.op)) {
      extent = Extent::kRow;
      analysis.has_reduction = true;
      analysis.num_stages = std::max(analysis.num_stages, stage + 2);
    }
    if (extent == Extent::kRow || extent == Extent::kColumn) {
      analysis.needs_rows = true;
    }
    analysis.extents.push_back(extent);
    analysis.predicates.push_back(Traits(v.op).gives_predicate);
    analysis.stages.push_back(stage);
  }
  return analysis;
}

std::string Validate(const EpilogueProgram& program) {
  const auto size = static_cast<int>(program.instructions.size());
  if (size == 0) return "no instructions";
  if (IsQuantized(program.x)) return Name(program.x) + " is for results only";
  if (size > kMaxInstructions) {
    return std::to_string(size) + " instructions, the limit is " +
           std::to_string(kMaxInstructions);
  }
  for (int i = 0; i < size; ++i) {
    const std::string error = CheckReferences(program, i);
    if (!error.empty()) return Numbered("v", i) + ": " + error;
  }
  if (std::string error = CheckOperands(program); !error.empty()) return error;

  const Analysis analysis = Analyze(program);
  for (int i = 0; i < size; ++i) {
    const std::string error = CheckTypes(program, analysis, i);
    if (!error.empty()) return Numbered("v", i) + ": " + error;
  }
  if (analysis.num_stages - 1 > kMaxStages) {
    return std::to_string(analysis.num_stages - 1) +
           " row reductions depend on each other, the limit is " +
           std::to_string(kMaxStages);
  }

  if (program.results.empty()) return "no results";
  if (program.results.size() > kMaxResults) {
    return std::to_string(program.results.size()) + " results, the limit is " +
           std::to_string(kMaxResults);
  }
  for (size_t i = 0; i < program.results.size(); ++i) {
    const std::string error =
        CheckResult(program, analysis, program.results[i]);
    if (!error.empty()) return Numbered("out", i) + ": " + error;
  }
  return "";
}

std::string ToText(const EpilogueProgram& program) {
  std::string text = "x " + Name(program.x);
  for (size_t i = 0; i < program.operands.size(); ++i) {
    const Operand& operand = program.operands[i];
    text += "; " + Numbered("in", i) + " " + Name(operand.extent) + " " +
            Name(operand.dtype);
    if (operand.slices != 0) {
      text += " slice " + std::to_string(operand.slices) + " at " +
              Numbered("i", operand.index);
    }
  }
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    const Instruction& v = program.instructions[i];
    text += "; " + Numbered("v", i) + " = ";
    text += v.op == Op::kOperand ? Numbered("in", v.operand) : Name(v.op);
    if (v.round != DType::kF32) text += "." + Name(v.round);
    if (v.op == Op::kConstant) text += " " + FormatConstant(v.constant);
    for (int k = 0; k < Arity(v.op); ++k) {
      text += " " + Numbered("v", v.inputs[k]);
    }
  }
  for (size_t i = 0; i < program.results.size(); ++i) {
    const Result& result = program.results[i];
    text += "; " + Numbered("out", i) + " " + Numbered("v", result.value) +
            " " + Name(result.dtype);
  }
  return text;
}

bool FromText(const std::string& text, EpilogueProgram* program,
              std::string* error) {
  *program = EpilogueProgram();
  Parser parser(program);
  for (const std::string_view statement : Split(text, "; ")) {
    const std::string reason = parser.Parse(statement);
    if (!reason.empty()) {
      *error = "'" + std::string(statement) + "': " + reason;
      return false;
    }
  }
  *error = Validate(*program);
  return error->empty();
}

std::string Describe(const EpilogueProgram& program) {
  return Describer(program).Describe();
}

std::string Identifier(const EpilogueProgram& program) {
  const std::string description = Describe(program);
  std::string name = "oneshot_all_reduce";
  if (description != "none") name += "_" + description;
  std::replace_if(
      name.begin(), name.end(),
      [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

}  // namespace oneshot
