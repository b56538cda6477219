# SPDX-License-Identifier: Apache-2.0
"""@xla, from the headers and libraries that a TensorFlow wheel carries.

The libraries have been given names of their own; see xla_wheel.py.

The wheel exports XLA's C++ interface, so that a pass can be compiled against it
in seconds. The labels are those of XLA's own build; all of them lead to the one
set of headers and libraries.
"""

load(":workspace.bzl", "workspace_path")

# Labels in use, as package -> target.
_LABELS = {
    "xla": ["literal", "shape_util", "xla_data_proto_cc"],
    "xla/hlo/analysis": ["alias_info"],
    "xla/hlo/ir": ["hlo"],
    "xla/hlo/parser": ["hlo_parser"],
    "xla/hlo/pass": ["hlo_pass"],
    "xla/pjrt/c": ["pjrt_c_api_hdrs"],
    "xla/service": [
        "collective_ops_utils",
        "copy_insertion",
        "hlo_proto_cc",
        "hlo_verifier",
        "pattern_matcher",
    ],
}

_BUILD = """
package(default_visibility = ["//visibility:public"])

_HEADERS = glob(
    ["include/%s/**" % directory for directory in [
        "Eigen",
        "absl",
        "external/farmhash_archive/src",
        "external/highwayhash",
        "google",
        "ml_dtypes",
        "tsl",
        "xla",
    ]],
    exclude = ["**/*.so*", "**/*.a"],
)

_INCLUDES = [
    "include",
    "include/external/farmhash_archive/src",
    "include/external/highwayhash",
]

cc_library(
    name = "headers",
    hdrs = _HEADERS,
    # As the libraries were compiled: some structures depend on it.
    defines = ["NDEBUG"],
    includes = _INCLUDES,
)

cc_library(
    name = "all",
    srcs = [":libraries"],
    linkstatic = True,
    deps = [":headers"],
)

filegroup(
    name = "libraries",
    srcs = [
        "lib/liboneshot_xla_cc.so",
        "lib/liboneshot_xla_framework.so",
    ],
)
"""

_ALIAS = """
alias(
    name = "%s",
    actual = "//:%s",
    visibility = ["//visibility:public"],
)
"""

def _xla_wheel_repository_impl(repository_ctx):
    wheel = workspace_path(repository_ctx, ".deps/xla/tensorflow")
    repository_ctx.symlink(wheel.get_child("include"), "include")
    for library in ["liboneshot_xla_cc.so", "liboneshot_xla_framework.so"]:
        repository_ctx.symlink(wheel.get_child(library), "lib/" + library)
    repository_ctx.file("BUILD", _BUILD)
    for package, targets in _LABELS.items():
        repository_ctx.file(package + "/BUILD", "".join([
            # The PJRT interface is C: it needs no library.
            _ALIAS % (target, "headers" if target.endswith("_hdrs") else "all")
            for target in targets
        ]))

xla_wheel_repository = repository_rule(
    implementation = _xla_wheel_repository_impl,
    configure = True,
    local = True,
)
