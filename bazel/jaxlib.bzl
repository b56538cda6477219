# SPDX-License-Identifier: Apache-2.0
"""@jaxlib: the FFI headers of the jaxlib that is installed in .venv."""

load(":workspace.bzl", "run", "workspace_path")

_BUILD = """
cc_library(
    name = "ffi",
    hdrs = glob(["include/xla/ffi/api/*.h"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
"""

def _jaxlib_repository_impl(repository_ctx):
    python = workspace_path(repository_ctx, ".venv/bin/python")
    include = run(repository_ctx, [
        python,
        "-c",
        "import importlib.util as u; print(u.find_spec('jaxlib').submodule_search_locations[0])",
    ])
    repository_ctx.symlink(include + "/include", "include")
    repository_ctx.file("BUILD", _BUILD)

jaxlib_repository = repository_rule(
    implementation = _jaxlib_repository_impl,
    configure = True,
    local = True,
)
