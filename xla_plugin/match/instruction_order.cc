// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/instruction_order.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

namespace oneshot {
namespace {

using ::xla::HloInstruction;

// The distance of neighbours at first: what is added finds a place between.
constexpr int64_t kDistance = int64_t{1} << 20;

template <typename Visit>
void ForEachSource(const HloInstruction* hlo, Visit visit) {
  for (const HloInstruction* operand : hlo->operands()) visit(operand);
  for (const HloInstruction* before : hlo->control_predecessors()) {
    visit(before);
  }
}

template <typename Visit>
void ForEachReader(const HloInstruction* hlo, Visit visit) {
  for (const HloInstruction* user : hlo->users()) visit(user);
  for (const HloInstruction* after : hlo->control_successors()) visit(after);
}

}  // namespace

InstructionOrder::InstructionOrder(const xla::HloComputation* computation) {
  int64_t number = 0;
  for (const HloInstruction* hlo : computation->MakeInstructionPostOrder()) {
    numbers_[hlo] = number += kDistance;
  }
}

int64_t InstructionOrder::NumberAfterOperands(const HloInstruction* hlo) {
  const auto known = numbers_.find(hlo);
  if (known != numbers_.end()) return known->second;
  int64_t number = 0;
  ForEachSource(hlo, [&](const HloInstruction* source) {
    number = std::max(number, NumberAfterOperands(source) + 1);
  });
  return numbers_[hlo] = number;
}

void InstructionOrder::Add(const HloInstruction* hlo) {
  // Readers whose number has become too small, by what it was. In that order
  // all that one of them reads has its number when its turn comes.
  using Place = std::pair<int64_t, const HloInstruction*>;
  std::priority_queue<Place, std::vector<Place>, std::greater<Place>> heap;
  const auto find_readers = [&](const HloInstruction* read) {
    const int64_t number = numbers_.at(read);
    ForEachReader(read, [&](const HloInstruction* reader) {
      const auto known = numbers_.find(reader);
      if (known == numbers_.end()) {
        heap.emplace(number, reader);
      } else if (known->second <= number) {
        heap.emplace(known->second, reader);
      }
    });
  };
  NumberAfterOperands(hlo);
  find_readers(hlo);
  while (!heap.empty()) {
    const HloInstruction* reader = heap.top().second;
    heap.pop();
    int64_t number = 0;
    ForEachSource(reader, [&](const HloInstruction* source) {
      number = std::max(number, NumberAfterOperands(source) + 1);
    });
    int64_t& place = numbers_.try_emplace(reader, -1).first->second;
    if (place >= number) continue;
    place = number;
    find_readers(reader);
  }
}

void Readers::Take(const HloInstruction* hlo) {
  for (HloInstruction* user : hlo->users()) {
    if (seen_.insert(user).second) {
      heap_.emplace(order_.Number(user), user->unique_id(), user);
    }
  }
}

HloInstruction* Readers::Next() {
  if (heap_.empty()) return nullptr;
  HloInstruction* next = std::get<HloInstruction*>(heap_.top());
  heap_.pop();
  return next;
}

bool Dependents::Contains(const HloInstruction* hlo) {
  // Far more than lies between a sum and what its epilogue reads, where models
  // come from layers; the limit is for graphs in which time would be quadratic.
  constexpr size_t kMost = 1 << 14;
  const auto look = [&](const HloInstruction* at) -> std::optional<bool> {
    if (order_.Number(at) < first_) return false;
    const auto known = known_.find(at);
    if (known != known_.end()) return known->second;
    if (looked_at_ >= kMost) return true;
    return std::nullopt;
  };
  if (const std::optional<bool> known = look(hlo)) return *known;
  // Depth first. Everything on the path waits for the answer of its end.
  struct Step {
    const HloInstruction* hlo;
    std::vector<const HloInstruction*> sources;  // left to look at
  };
  std::vector<Step> path;
  const auto enter = [&](const HloInstruction* at) {
    ++looked_at_;
    Step step = {at, {}};
    ForEachSource(at, [&](const HloInstruction* source) {
      step.sources.push_back(source);
    });
    path.push_back(std::move(step));
  };
  enter(hlo);
  while (!path.empty()) {
    std::vector<const HloInstruction*>& sources = path.back().sources;
    if (sources.empty()) {
      known_[path.back().hlo] = false;
      path.pop_back();
      continue;
    }
    const HloInstruction* source = sources.back();
    sources.pop_back();
    const std::optional<bool> known = look(source);
    if (!known.has_value()) {
      enter(source);
    } else if (*known) {
      for (const Step& step : path) known_[step.hlo] = true;
      return true;
    }
  }
  return false;
}

}  // namespace oneshot
