// SPDX-License-Identifier: Apache-2.0
//
// Marks the C functions that the shared libraries export. Everything else is
// compiled with hidden visibility: both libraries share a process with XLA.
#ifndef ONESHOT_CUDA_HANDLERS_EXPORT_H_
#define ONESHOT_CUDA_HANDLERS_EXPORT_H_

#define ONESHOT_EXPORT extern "C" __attribute__((visibility("default")))

#endif  // ONESHOT_CUDA_HANDLERS_EXPORT_H_
