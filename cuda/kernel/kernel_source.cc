// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/kernel_source.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <vector>

#include "cuda/kernel/kernel_text.h"
#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

const char* TypeName(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "kBf16";
    case DType::kF16:
      return "kF16";
    case DType::kF32:
      return "kF32";
    case DType::kF8E4M3FN:
      return "kF8E4M3FN";
    case DType::kF8E5M2:
      return "kF8E5M2";
    case DType::kS8:
      return "kS8";
  }
  return "";
}

// "round_nearest_even" is RoundNearestEven in the kernel.
std::string FunctionName(Op op) {
  std::string out;
  bool upper = true;
  for (const char* c = Name(op); *c != '\0'; ++c) {
    if (*c == '_') {
      upper = true;
      continue;
    }
    out += upper ? static_cast<char>(*c - 'a' + 'A') : *c;
    upper = false;
  }
  return out;
}

const char* ReductionName(Op op) {
  return op == Op::kReduceSum   ? "kSumOf"
         : op == Op::kReduceMax ? "kMaxOf"
                                : "kMinOf";
}

std::string Number(int value) { return std::to_string(value); }

std::string Literal(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  char text[48];
  std::snprintf(text, sizeof(text), "__uint_as_float(0x%08Xu)", bits);
  return text;
}

// Writes `struct Program`. Values that do not vary along a row are variables of
// Run; the others live inside loops over the packets of a tile, one loop for
// every stage, because a reduction needs the whole row. A value that a later
// stage needs is kept in an array, unless it is as cheap to make again.
class ProgramWriter {
 public:
  explicit ProgramWriter(const EpilogueProgram& program)
      : program_(program), analysis_(Analyze(program)) {}

  std::string Write() {
    out_ << "struct Program {\n";
    WriteMembers();
    WriteConstructor();
    WriteOpen();
    WriteLoad();
    WriteRun();
    out_ << "};\n";
    return out_.str();
  }

 private:
  const Instruction& At(int v) const { return program_.instructions[v]; }
  int size() const { return static_cast<int>(program_.instructions.size()); }

  bool VariesAlongRow(int v) const {
    return (analysis_.extents[v] | Extent::kRow) == Extent::kElement;
  }

  // What costs no more than a register move or a few instructions on operands
  // that are in registers anyway.
  bool IsCheap(int v) const {
    return At(v).op == Op::kOperand || analysis_.extents[v] == Extent::kColumn;
  }

  static std::string Value(int v) { return "v" + Number(v); }
  static std::string In(int o) { return "in" + Number(o); }

  bool IsPacked(const Operand& operand) const {
    return (operand.extent | Extent::kRow) == Extent::kElement;
  }

  void WriteMembers() {
    for (int o = 0; o < Operands(); ++o) {
      const Operand& operand = program_.operands[o];
      out_ << "  const void* base" << o << ";\n";
      if (operand.slices > 0) out_ << "  int slice" << o << ";\n";
      if (IsPacked(operand)) {
        out_ << "  Raw<" << TypeName(operand.dtype) << "> " << In(o)
             << "[kPackets];\n";
      } else {
        out_ << "  float " << In(o) << ";\n";
      }
    }
  }

  int Operands() const { return static_cast<int>(program_.operands.size()); }

  // Asks for the indices of slices.
  void WriteConstructor() {
    out_ << "  __device__ __forceinline__ explicit Program("
            "const KernelArguments& args) {\n";
    for (int o = 0; o < Operands(); ++o) {
      const Operand& operand = program_.operands[o];
      if (operand.slices == 0) continue;
      out_ << "    slice" << o << " = static_cast<int>(LoadNow32(args.indices["
           << operand.index << "]));\n";
    }
    out_ << "  }\n";
  }

  // Finds the operands, and loads those that are the same for all tiles.
  void WriteOpen() {
    out_ << "  __device__ __forceinline__ void Open("
            "const KernelArguments& args) {\n";
    for (int o = 0; o < Operands(); ++o) {
      const Operand& operand = program_.operands[o];
      out_ << "    base" << o << " = args.operands[" << o << "];\n";
      if (operand.slices == 0) continue;
      const char* elements = operand.extent == Extent::kElement
                                 ? "kRows * kHidden"
                             : operand.extent == Extent::kColumn ? "kHidden"
                             : operand.extent == Extent::kRow    ? "kRows"
                                                                 : "1";
      out_ << "    base" << o << " = static_cast<const char*>(base" << o
           << ") + static_cast<int64_t>(min(max(slice" << o << ", 0), "
           << operand.slices - 1 << ")) * (" << elements << ") * "
           << ByteWidth(operand.dtype) << ";\n";
    }
    for (int o = 0; o < Operands(); ++o) {
      const Operand& operand = program_.operands[o];
      if (operand.extent != Extent::kScalar) continue;
      out_ << "    " << In(o) << " = LoadOne<" << TypeName(operand.dtype)
           << ">(base" << o << ", 0);\n";
    }
    out_ << "  }\n";
  }

  void WriteLoad() {
    out_ << "  __device__ __forceinline__ void Load("
            "const KernelArguments& args, int tile) {\n";
    for (int o = 0; o < Operands(); ++o) {
      const Operand& operand = program_.operands[o];
      if (operand.extent == Extent::kRow) {
        out_ << "    " << In(o) << " = LoadOne<" << TypeName(operand.dtype)
             << ">(base" << o << ", tile / kTilesPerRow);\n";
      }
    }
    out_ << "#pragma unroll\n    for (int p = 0; p < kPackets; ++p) {\n"
            "      const Place place = Locate(tile, p);\n";
    for (int o = 0; o < Operands(); ++o) {
      const Operand& operand = program_.operands[o];
      if (!IsPacked(operand)) continue;
      out_ << "      " << In(o) << "[p] = oneshot::Load<"
           << TypeName(operand.dtype) << ">(base" << o << ", "
           << (operand.extent == Extent::kElement ? "place.index()"
                                                  : "place.column()")
           << ", place.count);\n";
    }
    out_ << "    }\n  }\n";
  }

  // The expression of an instruction that is no sum and no reduction.
  std::string Expression(int v) const {
    const Instruction& instruction = At(v);
    std::string text;
    if (instruction.op == Op::kConstant) {
      text = Literal(instruction.constant);
    } else if (instruction.op == Op::kOperand) {
      text = In(instruction.operand);
      if (VariesAlongRow(v)) text += "[p].Get(i)";
    } else {
      text = FunctionName(instruction.op) + "(";
      // An overload wants all its arguments in twos, or none.
      for (int k = 0; k < Arity(instruction.op); ++k) {
        const int input = instruction.inputs[k];
        if (k > 0) text += ", ";
        const bool twin = VariesAlongRow(v) && !VariesAlongRow(input);
        text += twin ? std::string(analysis_.predicates[input] ? "TruthPair("
                                                               : "Pair(") +
                           Value(input) + ")"
                     : Value(input);
      }
      text += ")";
    }
    if (instruction.round == DType::kF32) return text;
    return "Round<" + std::string(TypeName(instruction.round)) + ">(" + text +
           ")";
  }

  std::string Declaration(int v) const {
    const bool truth = analysis_.predicates[v];
    return std::string("const ") +
           (VariesAlongRow(v) ? (truth ? "TruthPair " : "Pair ")
                              : (truth ? "bool " : "float ")) +
           Value(v) + " = " + Expression(v) + ";\n";
  }

  // Values that vary along a row, in the loop of stage `s`, in order.
  struct Loop {
    std::vector<bool> computed;
    std::vector<bool> fetched;  // from the array of an earlier stage
  };

  Loop PlanLoop(int s) const {
    Loop loop{std::vector<bool>(size()), std::vector<bool>(size())};
    for (int v = size() - 1; v >= 0; --v) {
      const bool of_stage = analysis_.stages[v] == s;
      const bool reduces = IsReduction(At(v).op) && of_stage;
      if (VariesAlongRow(v) && of_stage && !IsCheap(v)) loop.computed[v] = true;
      if (!loop.computed[v] && !reduces) continue;
      for (int k = 0; k < Arity(At(v).op); ++k) {
        const int input = At(v).inputs[k];
        if (!VariesAlongRow(input)) continue;
        if (IsCheap(input) || analysis_.stages[input] == s) {
          loop.computed[input] = true;
        } else {
          loop.fetched[input] = true;
        }
      }
    }
    return loop;
  }

  void WriteRun() {
    const int stages = analysis_.num_stages;
    std::vector<Loop> loops;
    for (int s = 0; s < stages; ++s) loops.push_back(PlanLoop(s));
    // Results that are cheap values have to be made in the first loop.
    for (const Result& result : program_.results) {
      if (VariesAlongRow(result.value) && IsCheap(result.value)) {
        loops[0].computed[result.value] = true;
      }
    }

    out_ << "  __device__ __forceinline__ void Run(const KernelArguments& args,"
            " uint32_t epoch, int tile, const uint4 (&own)[kPackets],"
            " RowReducer& reducer) {\n";
    for (int v = 0; v < size(); ++v) {
      for (int s = 0; s < stages; ++s) {
        if (!loops[s].fetched[v]) continue;
        out_ << "    " << (analysis_.predicates[v] ? "TruthPair" : "Pair")
             << " kept" << v << "[kPackets][kPairs];\n";
        break;
      }
    }
    for (int s = 0; s < stages; ++s) {
      WriteRowValues(s);
      WriteLoop(s, loops);
      WriteEndOfStage(s);
    }
    out_ << "  }\n";
  }

  // Values of a stage that are the same along a row.
  void WriteRowValues(int s) {
    for (int v = 0; v < size(); ++v) {
      if (VariesAlongRow(v) || IsReduction(At(v).op) ||
          analysis_.stages[v] != s) {
        continue;
      }
      out_ << "    " << Declaration(v);
      WriteRowResults(v);
    }
  }

  void WriteRowResults(int v) {
    for (size_t r = 0; r < program_.results.size(); ++r) {
      if (program_.results[r].value != v) continue;
      out_ << "    if (threadIdx.x == 0 && tile % kTilesPerRow == 0) StoreOne<"
           << TypeName(program_.results[r].dtype) << ">(args.results[" << r
           << "], tile / kTilesPerRow, " << Value(v) << ");\n";
    }
  }

  void WriteLoop(int s, const std::vector<Loop>& loops) {
    const Loop& loop = loops[s];
    for (int v = 0; v < size(); ++v) {
      if (IsReduction(At(v).op) && analysis_.stages[v] == s) {
        out_ << "    float partial" << v << "[kPackets];\n";
      }
    }
    for (size_t r = 0; r < program_.results.size(); ++r) {
      if (StoresIn(s, program_.results[r].value)) {
        out_ << "    Pair out" << r << "[kPackets][kPairs];\n";
      }
    }
    out_ << "#pragma unroll\n    for (int p = 0; p < kPackets; ++p) {\n";
    for (int v = 0; v < size(); ++v) {
      if (IsReduction(At(v).op) && analysis_.stages[v] == s) {
        out_ << "      partial" << v << "[p] = Identity<"
             << ReductionName(At(v).op) << ">();\n";
      }
    }
    out_ << "      const Place place = Locate(tile, p);\n"
            "      if (place.count == 0) continue;\n";
    if (s == 0) {
      out_ << "      Pair sum[kPairs];\n"
              "      Receiver(args, epoch, place)"
              ".Sum(args, epoch, own[p], sum);\n";
    }
    out_ << "#pragma unroll\n      for (int i = 0; i < kPairs; ++i) {\n";
    for (int v = 0; v < size(); ++v) {
      if (loop.fetched[v]) {
        out_ << "        const "
             << (analysis_.predicates[v] ? "TruthPair " : "Pair ") << Value(v)
             << " = kept" << v << "[p][i];\n";
        continue;
      }
      if (IsReduction(At(v).op) && analysis_.stages[v] == s) {
        out_ << "        Accumulate<" << ReductionName(At(v).op) << ">(partial"
             << v << "[p], " << Value(At(v).inputs[0]) << ", place, i);\n";
        continue;
      }
      if (!loop.computed[v]) continue;
      if (At(v).op == Op::kSum) {
        out_ << "        const Pair " << Value(v) << " = Round<"
             << TypeName(At(v).round) << ">(sum[i]);\n";
      } else {
        out_ << "        " << Declaration(v);
      }
      for (size_t later = s + 1; later < loops.size(); ++later) {
        if (!loops[later].fetched[v]) continue;
        out_ << "        kept" << v << "[p][i] = " << Value(v) << ";\n";
        break;
      }
    }
    for (size_t r = 0; r < program_.results.size(); ++r) {
      if (StoresIn(s, program_.results[r].value)) {
        out_ << "        out" << r
             << "[p][i] = " << Value(program_.results[r].value) << ";\n";
      }
    }
    out_ << "      }\n    }\n";
  }

  // What nobody on this device waits for.
  void WriteStores(int s) {
    out_ << "#pragma unroll\n    for (int p = 0; p < kPackets; ++p) {\n"
            "      const Place place = Locate(tile, p);\n"
            "      if (place.count == 0) continue;\n";
    if (s == 0) out_ << "      Receiver(args, epoch, place).Clear(args);\n";
    for (size_t r = 0; r < program_.results.size(); ++r) {
      if (StoresIn(s, program_.results[r].value)) {
        out_ << "      Store<" << TypeName(program_.results[r].dtype)
             << ">(args.results[" << r << "], place, out" << r << "[p]);\n";
      }
    }
    out_ << "    }\n";
  }

  bool StoresIn(int s, int v) const {
    return VariesAlongRow(v) && (IsCheap(v) ? 0 : analysis_.stages[v]) == s;
  }

  void WriteEndOfStage(int s) {
    std::vector<int> reductions;
    for (int v = 0; v < size(); ++v) {
      if (IsReduction(At(v).op) && analysis_.stages[v] == s) {
        reductions.push_back(v);
      }
    }
    for (size_t slot = 0; slot < reductions.size(); ++slot) {
      const int v = reductions[slot];
      out_ << "    reducer.StorePartials<" << ReductionName(At(v).op) << ">("
           << slot << ", tile, partial" << v << ");\n";
    }
    // While the shares travel.
    WriteStores(s);
    if (reductions.empty()) return;
    out_ << "    reducer.WaitPartials(" << reductions.size() << ");\n";
    for (size_t slot = 0; slot < reductions.size(); ++slot) {
      const int v = reductions[slot];
      out_ << "    const float " << Value(v) << " = Round<"
           << TypeName(At(v).round) << ">(reducer.LoadReduced<"
           << ReductionName(At(v).op) << ">(" << slot << "));\n";
      WriteRowResults(v);
    }
    out_ << "    reducer.FlipBuffer();\n";
  }

  const EpilogueProgram& program_;
  const Analysis analysis_;
  std::ostringstream out_;
};

// The most reductions that any stage has.
int MostReductions(const EpilogueProgram& program) {
  const Analysis analysis = Analyze(program);
  std::vector<int> count(analysis.num_stages + 1);
  for (size_t v = 0; v < program.instructions.size(); ++v) {
    if (IsReduction(program.instructions[v].op)) ++count[analysis.stages[v]];
  }
  return *std::max_element(count.begin(), count.end());
}

}  // namespace

std::string KernelSource(const EpilogueProgram& program, const LaunchPlan& plan,
                         int ranks, bool vectorized, Machine machine) {
  std::ostringstream out;
  out << kInterfaceText
      << "namespace oneshot {\n"
         "enum DType { kF32, kBf16, kF16, kF8E4M3FN, kF8E5M2, kS8 };\n"
      << "constexpr DType kX = " << TypeName(program.x) << ";\n";
  const auto constant = [&](const char* name, int64_t value) {
    out << "constexpr int " << name << " = " << value << ";\n";
  };
  constant("kRanks", ranks);
  constant("kPeers", ranks - 1);
  constant("kRows", plan.rows);
  constant("kHidden", plan.hidden);
  constant("kElements", kPacketBytes / ByteWidth(program.x));
  constant("kPacketsPerRow", plan.packets_per_row);
  constant("kTilesPerRow", plan.tiles_per_row);
  constant("kPackets", plan.tuning.packets);
  constant("kThreads", plan.tuning.threads);
  constant("kCluster", plan.tuning.cluster);
  constant("kBlocks", plan.blocks);
  constant("kMessagePackets", MaxMessageBytes(ranks) / kPacketBytes);
  constant("kReductions", std::max(1, MostReductions(program)));
  out << "constexpr bool kTwoShot = "
      << (plan.tuning.two_shot ? "true" : "false") << ";\n"
      << "constexpr bool kVectorized = " << (vectorized ? "true" : "false")
      << ";\n"
      << "}  // namespace oneshot\n"
      << (machine == Machine::kGpu ? kPtxText : "") << kAllReduceText
      << "namespace oneshot {\n"
      << "// " << ToText(program) << "\n"
      << ProgramWriter(program).Write() << "}  // namespace oneshot\n"
      << "extern \"C\" __global__ void __launch_bounds__(oneshot::kThreads";
  // As many registers as let all blocks be resident; see launch_plan.cc.
  out << ", " << std::max(1, 512 / plan.tuning.threads) << ")\n";
  if (plan.tuning.cluster > 1) {
    out << "    __cluster_dims__(oneshot::kCluster, 1, 1)\n";
  }
  out << "    " << Identifier(program)
      << "(const __grid_constant__ oneshot::KernelArguments args) {\n"
         "  oneshot::AllReduce<oneshot::Program>(args);\n}\n";
  return out.str();
}

}  // namespace oneshot
