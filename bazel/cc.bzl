# SPDX-License-Identifier: Apache-2.0
"""A shared library that goes into the wheel."""

def plugin_library(name, **kwargs):
    """A shared library that exports nothing but the project's C functions.

    Args:
      name: file name of the library, with lib and .so.
      **kwargs: passed on to cc_binary.
    """
    native.cc_binary(
        name = name,
        additional_linker_inputs = ["//bazel:exports.lds"],
        linkopts = ["-Wl,--version-script=$(location //bazel:exports.lds)"],
        linkshared = True,
        **kwargs
    )
