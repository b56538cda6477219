# SPDX-License-Identifier: Apache-2.0
"""@python, the wheel, and tests that pytest runs.

Bazel 4's own Python rules know no virtual environments.
"""

load(":workspace.bzl", "workspace_path")

def _python_repository_impl(repository_ctx):
    for name, environment in [("python", ".venv"), ("newest", ".deps/newest")]:
        python = workspace_path(repository_ctx, environment + "/bin/python")
        repository_ctx.file(
            name,
            # By its own path: that is how Python finds its environment.
            "#!/bin/sh\nexec '%s' \"$@\"\n" % python,
            executable = True,
        )
    for name, environment, compiler in [
        ("gpu", ".venv", ".deps/xla_gpu"),
        ("newest_gpu", ".deps/newest", ".deps/newest_xla_gpu"),
    ]:
        repository_ctx.file(
            name,
            "#!/bin/sh\nPYTHONPATH=\"$PYTHONPATH:%s\" exec '%s' \"$@\"\n" % (
                workspace_path(repository_ctx, compiler),
                workspace_path(repository_ctx, environment + "/bin/python"),
            ),
            executable = True,
        )
    repository_ctx.file(
        "BUILD",
        "exports_files([\"python\", \"newest\", \"gpu\", \"newest_gpu\"])\n",
    )

python_repository = repository_rule(
    implementation = _python_repository_impl,
    configure = True,
    local = True,
)

def _wheel_impl(ctx):
    wheel = ctx.actions.declare_file(ctx.attr.filename)
    site = ctx.actions.declare_directory("site")
    arguments = ctx.actions.args()
    arguments.add(ctx.file.builder)
    arguments.add("--wheel", wheel)
    arguments.add("--site", site.path)
    arguments.add_all("--modules", ctx.files.modules)
    arguments.add_all("--libraries", ctx.files.libraries)
    arguments.add("--readme", ctx.file.readme)
    arguments.add_all("--licenses", ctx.files.licenses)
    ctx.actions.run(
        executable = ctx.executable._python,
        arguments = [arguments],
        inputs = [ctx.file.builder, ctx.file.readme] +
                 ctx.files.modules + ctx.files.libraries + ctx.files.licenses,
        outputs = [wheel, site],
        mnemonic = "Wheel",
        progress_message = "Building %s" % ctx.attr.filename,
    )
    return [
        DefaultInfo(files = depset([wheel])),
        OutputGroupInfo(site = depset([site])),
    ]

wheel = rule(
    implementation = _wheel_impl,
    doc = "A wheel, and the same files unpacked (output group `site`).",
    attrs = {
        "builder": attr.label(allow_single_file = [".py"], mandatory = True),
        "filename": attr.string(mandatory = True),
        "libraries": attr.label_list(allow_files = [".so"]),
        "licenses": attr.label_list(allow_files = True),
        "modules": attr.label_list(allow_files = [".py"]),
        "readme": attr.label(allow_single_file = [".md"], mandatory = True),
        "_python": attr.label(
            allow_single_file = True,
            cfg = "exec",
            default = "@python//:python",
            executable = True,
        ),
    },
)

def pytest_test(name, src, python = "python", data = [], **kwargs):
    """Runs a pytest file with the built package on its path.

    Args:
      name: name of the test.
      src: the test file.
      python: which environment runs it: "python", "newest" for the newest jax
        that Oneshot is known to work with, "gpu" and "newest_gpu" for these
        with XLA's compiler for GPUs.
      data: files that the test reads.
      **kwargs: passed on to sh_test.
    """
    native.sh_test(
        name = name,
        srcs = ["//bazel:pytest.sh"],
        args = [python, "$(location %s)" % src],
        data = data + [
            src,
            "//python:site",
            "@python//:" + python,
            "@xla//:libraries",
        ],
        **kwargs
    )
