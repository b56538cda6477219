// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "cuda/program/epilogue_program.h"
#include "cuda/program/program_tables.h"

namespace oneshot {
namespace {

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
