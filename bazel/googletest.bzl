# SPDX-License-Identifier: Apache-2.0
"""@com_google_googletest: Debian's libgtest-dev and libgmock-dev."""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "gtest",
    linkopts = ["-lgmock", "-lgtest", "-lpthread"],
)

cc_library(
    name = "gtest_main",
    linkopts = ["-lgtest_main"],
    deps = [":gtest"],
)
"""

def _googletest_repository_impl(repository_ctx):
    if not repository_ctx.path("/usr/include/gmock/gmock.h").exists:
        fail("libgmock-dev is missing: run `make setup` first")
    repository_ctx.file("BUILD", _BUILD)

googletest_repository = repository_rule(
    implementation = _googletest_repository_impl,
    configure = True,
    local = True,
)
