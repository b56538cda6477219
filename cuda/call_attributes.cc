// SPDX-License-Identifier: Apache-2.0
#include "cuda/call_attributes.h"

#include <cmath>
#include <cstddef>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "cuda/limits.h"

namespace oneshot {
namespace {

namespace ffi = ::xla::ffi;

template <typename... Parts>
std::string StrCat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::vector<std::string_view> SplitList(std::string_view list) {
  std::vector<std::string_view> items;
  if (list.empty()) return items;
  while (true) {
    const size_t comma = list.find(',');
    items.push_back(list.substr(0, comma));
    if (comma == std::string_view::npos) return items;
    list.remove_prefix(comma + 1);
  }
}

std::optional<DType> ParseDType(std::string_view name) {
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBf16;
  if (name == "f16") return DType::kF16;
  return std::nullopt;
}

std::optional<DType> FromFfi(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32:
      return DType::kF32;
    case ffi::DataType::BF16:
      return DType::kBf16;
    case ffi::DataType::F16:
      return DType::kF16;
    default:
      return std::nullopt;
  }
}

// Reads attributes and buffers, keeping the first thing that is wrong. Values
// read after that are defaults; the caller looks at error() once at the end.
class Reader {
 public:
  explicit Reader(std::string site) : site_(std::move(site)) {}

  void Fail(const std::string& message) {
    if (error_.success()) {
      error_ = SiteError(ffi::ErrorCode::kInvalidArgument, site_, message);
    }
  }

  template <typename T>
  T Get(const ffi::Dictionary& attributes, const char* name) {
    if (!attributes.contains(name)) {
      Fail(StrCat("attribute '", name, "' is missing"));
      return T();
    }
    ffi::ErrorOr<T> value = attributes.get<T>(name);
    if (value.has_error()) {
      Fail(StrCat("attribute '", name, "': ", value.error().message()));
      return T();
    }
    return *value;
  }

  DType GetDType(const char* attribute, std::string_view name) {
    const std::optional<DType> dtype = ParseDType(name);
    if (!dtype) {
      Fail(StrCat("attribute '", attribute,
                  "': expected f32, bf16 or f16, got '", name, "'"));
    }
    return dtype.value_or(DType::kF32);
  }

  void Expect(bool condition, const char* attribute,
              const std::string& expectation, const std::string& got) {
    if (!condition) {
      Fail(StrCat("attribute '", attribute, "': expected ", expectation,
                  ", got ", got));
    }
  }

  const ffi::Error& error() const { return error_; }

 private:
  std::string site_;
  ffi::Error error_;
};

std::string Quoted(std::string_view text) { return StrCat("'", text, "'"); }

void ReadAddends(const ffi::Dictionary& attributes, Reader& reader,
                 CallAttributes& call) {
  const auto names = reader.Get<std::string_view>(attributes, "addends");
  const auto rounds = reader.Get<std::string_view>(attributes, "addend_rounds");
  const std::vector<std::string_view> name_list = SplitList(names);
  const std::vector<std::string_view> round_list = SplitList(rounds);
  if (name_list.size() != round_list.size()) {
    reader.Fail(StrCat("attribute 'addend_rounds': expected ", name_list.size(),
                       " items as in 'addends', got ", Quoted(rounds)));
    return;
  }
  for (size_t i = 0; i < name_list.size(); ++i) {
    const bool is_bias = name_list[i] == "bias";
    bool& seen = is_bias ? call.has_bias : call.has_residual;
    if ((!is_bias && name_list[i] != "residual") || seen) {
      reader.Fail(
          StrCat("attribute 'addends': expected '', 'bias', 'residual', "
                 "'bias,residual' or 'residual,bias', got ",
                 Quoted(names)));
      return;
    }
    seen = true;
    Addend& addend = call.epilogue.addends[call.epilogue.num_addends++];
    addend.round = reader.GetDType("addend_rounds", round_list[i]);
    addend.per_row = !is_bias;
  }
}

void ReadNorm(const ffi::Dictionary& attributes, Reader& reader,
              Epilogue& epilogue) {
  const auto emit = reader.Get<std::string_view>(attributes, "emit");
  epilogue.emit_sum = emit == "sum" || emit == "sum,norm";
  epilogue.emit_norm = emit == "norm" || emit == "sum,norm";
  reader.Expect(epilogue.emit_sum || epilogue.emit_norm, "emit",
                "'sum', 'norm' or 'sum,norm'", Quoted(emit));

  const auto norm = reader.Get<std::string_view>(attributes, "norm");
  reader.Expect(norm == "none" || norm == "rms", "norm", "'none' or 'rms'",
                Quoted(norm));
  reader.Expect((norm == "rms") == epilogue.emit_norm, "norm",
                epilogue.emit_norm ? "'rms' because a norm is emitted"
                                   : "'none' because no norm is emitted",
                Quoted(norm));

  epilogue.norm_round = reader.GetDType(
      "norm_round", reader.Get<std::string_view>(attributes, "norm_round"));
  epilogue.has_gain = reader.Get<bool>(attributes, "gain");
  reader.Expect(epilogue.emit_norm || !epilogue.has_gain, "gain",
                "false because no norm is emitted", "true");
  epilogue.epsilon = reader.Get<float>(attributes, "epsilon");
  reader.Expect(std::isfinite(epilogue.epsilon) && epilogue.epsilon >= 0,
                "epsilon", "a finite value >= 0", StrCat(epilogue.epsilon));
  epilogue.mean_scale = reader.Get<float>(attributes, "mean_scale");
  reader.Expect(std::isfinite(epilogue.mean_scale), "mean_scale",
                "a finite value", StrCat(epilogue.mean_scale));
}

void ReadGroups(const ffi::Dictionary& attributes, Reader& reader,
                CallAttributes& call) {
  const auto mode = reader.Get<std::string_view>(attributes, "group_mode");
  reader.Expect(mode == "flattened_id", "group_mode", "'flattened_id'",
                Quoted(mode));
  call.num_partitions = reader.Get<int64_t>(attributes, "num_partitions");
  reader.Expect(call.num_partitions >= 0, "num_partitions", "at least 0",
                StrCat(call.num_partitions));
  const auto size = reader.Get<int64_t>(attributes, "group_size");
  const auto ids =
      reader.Get<ffi::Span<const int64_t>>(attributes, "replica_groups");
  if (size < kMinRanks || size > kMaxRanks) {
    reader.Fail(StrCat("attribute 'group_size': expected ", kMinRanks, " to ",
                       kMaxRanks, ", got ", size));
    return;
  }
  if (ids.size() == 0 || ids.size() % size != 0) {
    reader.Fail(StrCat("attribute 'replica_groups': expected groups of ", size,
                       " ids, got ", ids.size(), " ids"));
    return;
  }
  std::set<int64_t> seen;
  for (size_t i = 0; i < ids.size(); ++i) {
    reader.Expect(ids[i] >= 0 && seen.insert(ids[i]).second, "replica_groups",
                  "distinct ids >= 0", StrCat("id ", ids[i]));
    if (i % size == 0) call.groups.emplace_back();
    call.groups.back().push_back(ids[i]);
  }
}

std::string DTypeName(ffi::DataType dtype) {
  std::ostringstream out;
  out << dtype;
  return out.str();
}

// Hands out the operands (or results) one after another.
template <typename List>
class BufferCursor {
 public:
  BufferCursor(const List& list, Reader& reader)
      : list_(list), reader_(reader) {}

  // The next buffer's data and type. `elements` < 0: any number.
  void* Next(const char* name, int64_t elements, DType* dtype,
             int64_t* actual_elements = nullptr) {
    auto item = list_.template get<ffi::AnyBuffer>(index_++);
    if (item.has_error()) {
      reader_.Fail(StrCat(name, ": ", item.error().message()));
      return nullptr;
    }
    const ffi::AnyBuffer buffer = Unwrap(*item);
    const std::optional<DType> type = FromFfi(buffer.element_type());
    if (!type) {
      reader_.Fail(StrCat(name, ": expected F32, BF16 or F16, got ",
                          DTypeName(buffer.element_type())));
      return nullptr;
    }
    *dtype = *type;
    const int64_t count = static_cast<int64_t>(buffer.element_count());
    if (elements >= 0 && count != elements) {
      reader_.Fail(
          StrCat(name, ": expected ", elements, " elements, got ", count));
    }
    if (actual_elements != nullptr) *actual_elements = count;
    return buffer.untyped_data();
  }

 private:
  static ffi::AnyBuffer Unwrap(ffi::AnyBuffer& buffer) { return buffer; }
  static ffi::AnyBuffer Unwrap(ffi::Result<ffi::AnyBuffer>& result) {
    return *result;
  }

  const List& list_;
  Reader& reader_;
  size_t index_ = 0;
};

}  // namespace

ffi::Error SiteError(ffi::ErrorCode code, const std::string& site,
                     const std::string& message) {
  return ffi::Error(code, StrCat("oneshot_all_reduce (", site, "): ", message));
}

ffi::ErrorOr<CallAttributes> ParseCallAttributes(
    const ffi::Dictionary& attributes) {
  CallAttributes call;
  // The site only serves messages, so a call without one can still be named.
  const auto site = attributes.get<std::string_view>("site");
  call.site =
      site.has_value() && !site->empty() ? std::string(*site) : "unnamed site";
  Reader reader(call.site);

  const auto abi = reader.Get<int64_t>(attributes, "abi");
  reader.Expect(abi == kAbiVersion, "abi",
                StrCat(kAbiVersion,
                       " (the pass and the handlers must be of one "
                       "version)"),
                StrCat(abi));
  // Nothing else can be trusted, or worded well, across versions.
  if (reader.error().failure()) return reader.error();

  reader.Get<std::string_view>(attributes, "site");
  call.hidden = reader.Get<int64_t>(attributes, "hidden");
  reader.Expect(call.hidden >= 1, "hidden", "at least 1", StrCat(call.hidden));
  call.epilogue.sum_round = reader.GetDType(
      "sum_round", reader.Get<std::string_view>(attributes, "sum_round"));
  ReadAddends(attributes, reader, call);
  ReadNorm(attributes, reader, call.epilogue);
  ReadGroups(attributes, reader, call);
  if (reader.error().failure()) return reader.error();
  return call;
}

ffi::ErrorOr<BoundCall> BindCall(const CallAttributes& attributes,
                                 const ffi::RemainingArgs& operands,
                                 const ffi::RemainingRets& results,
                                 int trailing_operands) {
  Reader reader(attributes.site);
  BoundCall call;
  call.epilogue = attributes.epilogue;
  call.hidden = attributes.hidden;
  Epilogue& epilogue = call.epilogue;

  const size_t num_operands = 1 + epilogue.num_addends +
                              (epilogue.has_gain ? 1 : 0) + trailing_operands;
  const size_t num_results =
      (epilogue.emit_sum ? 1 : 0) + (epilogue.emit_norm ? 1 : 0);
  if (operands.size() != num_operands) {
    reader.Fail(
        StrCat("expected ", num_operands, " operands, got ", operands.size()));
  }
  if (results.size() != num_results) {
    reader.Fail(
        StrCat("expected ", num_results, " results, got ", results.size()));
  }
  if (reader.error().failure()) return reader.error();

  BufferCursor<ffi::RemainingArgs> next_operand(operands, reader);
  int64_t elements = 0;
  call.buffers.x = next_operand.Next("x", -1, &epilogue.x_dtype, &elements);
  if (elements % call.hidden != 0) {
    reader.Fail(StrCat("x: expected rows of ", call.hidden, " elements, got ",
                       elements, " elements"));
  }
  call.rows = elements / call.hidden;

  // The operands come as bias, residual; the adds in the order of `addends`.
  for (const bool per_row : {false, true}) {
    for (int a = 0; a < epilogue.num_addends; ++a) {
      if (epilogue.addends[a].per_row != per_row) continue;
      call.buffers.addends[a] = next_operand.Next(
          per_row ? "residual" : "bias", per_row ? elements : call.hidden,
          &epilogue.addends[a].dtype);
    }
  }
  if (epilogue.has_gain) {
    call.buffers.gain =
        next_operand.Next("gain", call.hidden, &epilogue.gain_dtype);
  }

  BufferCursor<ffi::RemainingRets> next_result(results, reader);
  if (epilogue.emit_sum) {
    call.buffers.sum =
        next_result.Next("sum result", elements, &epilogue.sum_dtype);
  }
  if (epilogue.emit_norm) {
    call.buffers.norm =
        next_result.Next("norm result", elements, &epilogue.norm_dtype);
  }

  const int64_t padded_row =
      PaddedRowBytes(call.hidden * ByteWidth(epilogue.x_dtype));
  if (epilogue.emit_norm && padded_row > kMaxRowBytes) {
    reader.Fail(StrCat("a row to normalise has ", padded_row,
                       " bytes, the limit is ", kMaxRowBytes));
  }
  if (reader.error().failure()) return reader.error();
  return call;
}

}  // namespace oneshot
