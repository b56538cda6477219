// SPDX-License-Identifier: Apache-2.0
//
// The kernel on real devices, without XLA: against the host implementation, and
// under what could break the protocol. Prints a line per case and a summary;
// the status is 0 only if every case passed, 3 if a case hung.
//
//   protocol_test [--devices 0,1] [--quick] [--replays 10000] [--only NAME]
//                 [--nvrtc DIR]
//
// Ranks are spread over the devices; with one device they share it.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/device_tests/test_support.h"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/kernel/nvrtc.h"

int main(int argc, char** argv) {
  // Many ranks on one device need a hardware queue each, and no kernel may be
  // loaded while another one spins.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/1);
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/1);

  oneshot::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag == "--quick") {
      options.quick = true;
    } else if (flag == "--devices" && value != nullptr) {
      options.devices = oneshot::ParseList(argv[++i]);
    } else if (flag == "--replays" && value != nullptr) {
      options.replays = std::atoi(argv[++i]);
    } else if (flag == "--nvrtc" && value != nullptr) {
      oneshot::SetNvrtcPath(argv[++i]);
    } else if (flag == "--only" && value != nullptr) {
      options.only = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: %s [--devices 0,1] [--quick] [--replays N] "
                   "[--nvrtc DIR] [--only PART]\n"
                   "parts: workspaces calls invariance late_rank replays\n",
                   argv[0]);
      return 2;
    }
  }
  if (options.devices.empty() || !oneshot::EnablePeerAccess(options.devices)) {
    std::fprintf(stderr, "no devices, or they cannot access each other\n");
    return 2;
  }
  oneshot::Report report;
  const auto wanted = [&](const char* name) {
    return options.only.empty() || options.only == name;
  };
  if (wanted("workspaces")) oneshot::TestWorkspaces(options, report);
  if (wanted("calls")) oneshot::TestCalls(options, report);
  if (wanted("invariance")) oneshot::TestInvariance(options, report);
  if (wanted("late_rank")) oneshot::TestLateRank(options, report);
  if (wanted("replays")) oneshot::TestReplays(options, report);
  return report.Finish();
}
