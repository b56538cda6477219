// SPDX-License-Identifier: Apache-2.0
//
// Tells whether a serialized HloModuleProto holds an all-reduce, by walking the
// protobuf wire format. Needs neither XLA nor protobuf, so that programs
// without an all-reduce never load or parse anything.

#ifndef ONESHOT_XLA_PLUGIN_MODULE_MODULE_SCAN_H_
#define ONESHOT_XLA_PLUGIN_MODULE_MODULE_SCAN_H_

#include <string_view>

namespace oneshot {

// True if an instruction of the module is an all-reduce, synchronous or not.
// Bytes that are no HloModuleProto hold none.
bool HasAllReduce(std::string_view module);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MODULE_MODULE_SCAN_H_
