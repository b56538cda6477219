// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/call_attributes.h"

#include <cstddef>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

namespace ffi = ::xla::ffi;

// The most elements that a message can have: two bytes each, between two ranks.
constexpr int64_t kMaxElements = MaxMessageBytes(kMinRanks) / 2;

template <typename... Parts>
std::string StrCat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

ffi::DataType ToFfi(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ffi::DataType::F32;
    case DType::kBf16:
      return ffi::DataType::BF16;
    case DType::kF16:
      return ffi::DataType::F16;
    case DType::kF8E4M3FN:
      return ffi::DataType::F8E4M3FN;
    case DType::kF8E5M2:
      return ffi::DataType::F8E5M2;
    case DType::kS8:
      return ffi::DataType::S8;
  }
  return ffi::DataType::INVALID;
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

void ReadProgram(const ffi::Dictionary& attributes, Reader& reader,
                 CallAttributes& call) {
  const auto text = reader.Get<std::string_view>(attributes, "program");
  std::string error;
  if (!FromText(std::string(text), &call.program, &error)) {
    reader.Fail(StrCat("attribute 'program': ", error));
    return;
  }
  call.analysis = Analyze(call.program);
  const int64_t max_hidden = kMaxRowBytes / ByteWidth(call.program.x);
  if (call.analysis.has_reduction && call.hidden > max_hidden) {
    reader.Fail(StrCat("attribute 'hidden': expected at most ", max_hidden,
                       " because rows are reduced, got ", call.hidden));
  }
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

// Hands out the operands (or results) one after another.
template <typename List>
class BufferCursor {
 public:
  BufferCursor(const List& list, Reader& reader)
      : list_(list), reader_(reader) {}

  // The next buffer's data, and how many elements it has.
  void* Next(const std::string& name, ffi::DataType type, int64_t* elements) {
    auto item = list_.template get<ffi::AnyBuffer>(index_++);
    if (item.has_error()) {
      reader_.Fail(StrCat(name, ": ", item.error().message()));
      return nullptr;
    }
    const ffi::AnyBuffer buffer = Unwrap(*item);
    if (buffer.element_type() != type) {
      reader_.Fail(
          StrCat(name, ": expected ", type, ", got ", buffer.element_type()));
      return nullptr;
    }
    *elements = static_cast<int64_t>(buffer.element_count());
    return buffer.untyped_data();
  }

  // The same for one that must have this many elements.
  void* NextOf(const std::string& name, ffi::DataType type, int64_t elements) {
    int64_t actual = elements;
    void* data = Next(name, type, &actual);
    if (actual != elements) {
      reader_.Fail(
          StrCat(name, ": expected ", elements, " elements, got ", actual));
    }
    return data;
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

int64_t ElementCount(Extent extent, int64_t rows, int64_t hidden) {
  switch (extent) {
    case Extent::kScalar:
      return 1;
    case Extent::kRow:
      return rows;
    case Extent::kColumn:
      return hidden;
    case Extent::kElement:
      return rows * hidden;
  }
  return 0;
}

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
  reader.Expect(call.hidden >= 1 && call.hidden <= kMaxElements, "hidden",
                StrCat("1 to ", kMaxElements), StrCat(call.hidden));
  if (reader.error().failure()) return reader.error();
  call.rows = reader.Get<int64_t>(attributes, "rows");
  reader.Expect(call.rows >= 0 && call.rows <= kMaxElements / call.hidden,
                "rows", "at least 0 and no more than fit the workspace",
                StrCat(call.rows));
  ReadProgram(attributes, reader, call);
  ReadGroups(attributes, reader, call);
  if (reader.error().failure()) return reader.error();
  return call;
}

ffi::ErrorOr<BoundCall> BindCall(const CallAttributes& attributes,
                                 const ffi::RemainingArgs& operands,
                                 const ffi::RemainingRets& results,
                                 int trailing_operands) {
  Reader reader(attributes.site);
  const EpilogueProgram& program = attributes.program;
  BoundCall call;
  call.program = &program;
  call.rows = attributes.rows;
  call.hidden = attributes.hidden;

  const size_t num_operands = 1 + program.operands.size() +
                              static_cast<size_t>(program.indices) +
                              static_cast<size_t>(trailing_operands);
  if (operands.size() != num_operands) {
    reader.Fail(
        StrCat("expected ", num_operands, " operands, got ", operands.size()));
  }
  if (results.size() != program.results.size()) {
    reader.Fail(StrCat("expected ", program.results.size(), " results, got ",
                       results.size()));
  }
  if (reader.error().failure()) return reader.error();

  BufferCursor<ffi::RemainingArgs> next_operand(operands, reader);
  call.buffers.x = next_operand.NextOf("x", ToFfi(program.x),
                                       attributes.rows * attributes.hidden);

  for (size_t i = 0; i < program.operands.size(); ++i) {
    const Operand& operand = program.operands[i];
    const std::string name = StrCat("in", i);
    const ffi::DataType type = ToFfi(operand.dtype);
    const int64_t count = ElementCount(operand.extent, call.rows, call.hidden);
    if (operand.slices == 0) {
      call.buffers.operands[i] = next_operand.NextOf(name, type, count);
      continue;
    }
    int64_t stacked = 0;
    call.buffers.operands[i] = next_operand.Next(name, type, &stacked);
    // By division: the product could overflow.
    if (stacked % operand.slices != 0 || stacked / operand.slices != count) {
      reader.Fail(StrCat(name, ": expected ", operand.slices, " slices of ",
                         count, " elements, got ", stacked, " elements"));
    }
  }
  for (int i = 0; i < program.indices; ++i) {
    call.buffers.indices[i] = static_cast<const int32_t*>(
        next_operand.NextOf(StrCat("i", i), ffi::DataType::S32, 1));
  }

  BufferCursor<ffi::RemainingRets> next_result(results, reader);
  for (size_t i = 0; i < program.results.size(); ++i) {
    const Result& result = program.results[i];
    call.buffers.results[i] = next_result.NextOf(
        StrCat("out", i), ToFfi(result.dtype),
        ElementCount(attributes.analysis.extents[result.value], call.rows,
                     call.hidden));
  }
  if (reader.error().failure()) return reader.error();
  return call;
}

}  // namespace oneshot
