// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/program/epilogue_program.h"
#include "cuda/program/program_tables.h"

namespace oneshot {
namespace {

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

}  // namespace

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

}  // namespace oneshot
