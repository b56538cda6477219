# SPDX-License-Identifier: Apache-2.0
"""What there is of CUDA, and a rule that compiles CUDA sources with nvcc.

The product needs @cuda_driver alone, which is a header. @nvrtc is for tests.
@cuda is for tests and benchmarks on GPUs: its nvcc is looked for on PATH, in
CUDA_HOME and among NVIDIA's wheels, which bazel/setup.sh installs when there is
no other that is new enough.
"""

load(":workspace.bzl", "workspace_path")

_DRIVER_BUILD = """
cc_library(
    name = "headers",
    hdrs = ["include/cuda.h"],
    includes = ["include"],
    visibility = ["//visibility:public"],
)
"""

def _cuda_driver_repository_impl(repository_ctx):
    repository_ctx.symlink(
        workspace_path(repository_ctx, ".deps/cuda_driver/nvidia/cu13/include/cuda.h"),
        "include/cuda.h",
    )
    repository_ctx.file("BUILD", _DRIVER_BUILD)

cuda_driver_repository = repository_rule(
    implementation = _cuda_driver_repository_impl,
    configure = True,
    local = True,
)

# The run-time compiler, for tests: the product loads that of JAX.
_NVRTC_BUILD = """
package(default_visibility = ["//visibility:public"])

[filegroup(
    name = version,
    srcs = glob([version + "/libnvrtc*"]),
) for version in [
    "newest",
    "oldest",
]]
"""

def _nvrtc_repository_impl(repository_ctx):
    for version, path in [
        ("newest", ".deps/nvrtc/nvidia/cu13/lib"),
        ("oldest", ".deps/nvrtc_oldest/nvidia/cuda_nvrtc/lib"),
    ]:
        repository_ctx.symlink(workspace_path(repository_ctx, path), version)
    repository_ctx.file("BUILD", _NVRTC_BUILD)

nvrtc_repository = repository_rule(
    implementation = _nvrtc_repository_impl,
    configure = True,
    local = True,
)

_BUILD = """
package(default_visibility = ["//visibility:public"])

exports_files(["nvcc"])

# The run-time library is linked statically: it needs nothing but the driver.
cc_library(
    name = "cudart",
    srcs = ["lib/libcudart_static.a"],
    hdrs = glob([
        "include/*.h",
        "include/*.hpp",
        "include/crt/**",
    ]),
    includes = ["include"],
    linkopts = ["-ldl", "-lpthread", "-lrt"],
)
"""

def _usable(repository_ctx, nvcc):
    """Whether a path is an nvcc that knows all of _ARCHITECTURES (CUDA 12.8)."""
    if not nvcc.exists:
        return False
    listed = repository_ctx.execute([nvcc, "--list-gpu-arch"]).stdout
    return "compute_100" in listed

def _cuda_root(repository_ctx):
    """Returns the toolkit's root directory as a string."""
    home = repository_ctx.os.environ.get("CUDA_HOME", "")
    nvcc = repository_ctx.which("nvcc")
    if nvcc == None or not _usable(repository_ctx, nvcc):
        nvcc = repository_ctx.path(home + "/bin/nvcc")
    if not _usable(repository_ctx, nvcc):
        nvcc = workspace_path(repository_ctx, ".deps/cuda/nvidia/cu13/bin/nvcc", "make nvcc")

    # nvcc may be a script or a link; it knows itself where it lives.
    result = repository_ctx.execute([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"])
    for line in (result.stdout + result.stderr).splitlines():
        if line.startswith("#$ TOP="):
            return str(repository_ctx.path(line[len("#$ TOP="):]).realpath)
    fail("%s does not say where its toolkit is: %s" % (nvcc, result.stderr))

def _cuda_repository_impl(repository_ctx):
    root = _cuda_root(repository_ctx)
    repository_ctx.symlink(root + "/include", "include")
    for directory in ["lib64", "lib"]:
        library = repository_ctx.path(root + "/%s/libcudart_static.a" % directory)
        if library.exists:
            repository_ctx.symlink(library, "lib/libcudart_static.a")
            break
    repository_ctx.file(
        "nvcc",
        "#!/bin/sh\nexec '%s/bin/nvcc' \"$@\"\n" % root,
        executable = True,
    )
    repository_ctx.file("BUILD", _BUILD)

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    configure = True,
    environ = ["CUDA_HOME", "PATH"],
    local = True,
)

# A100, H100/H200 and B200/GB200 get machine code. Other devices from the A100
# on have the driver compile the PTX of the oldest.
_ARCHITECTURES = [
    "arch=compute_80,code=[sm_80,compute_80]",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_100,code=sm_100",
]

def cuda_library(name, srcs, hdrs = [], headers = [], deps = [], testonly = None, **kwargs):
    """A cc_library whose .cu sources are compiled by nvcc.

    Args:
      name: name of the library.
      srcs: .cu files.
      hdrs: headers of this package that the sources include.
      headers: labels of the other headers that they include.
      deps: cc_library targets to link with.
      testonly: as for any rule.
      **kwargs: passed on to cc_library.
    """
    objects = []
    for src in srcs:
        object = src[:-len(".cu")] + ".cu.o"
        native.genrule(
            name = object[:-len(".o")] + "_object",
            srcs = [src] + hdrs + headers,
            testonly = testonly,
            outs = [object],
            cmd = " ".join(
                ["$(location @cuda//:nvcc) -c $(location %s) -o $@ -I." % src] +
                ["-std=c++17 -O3 -lineinfo --threads 2"] +
                ["-Xcompiler -fPIC,-fvisibility=hidden,-Wall"] +
                ["-gencode '%s'" % a for a in _ARCHITECTURES],
            ),
            message = "Compiling with nvcc",
            tools = ["@cuda//:nvcc"],
        )
        objects.append(object)
    native.cc_library(
        name = name,
        srcs = objects,
        hdrs = hdrs,
        testonly = testonly,
        deps = deps + ["@cuda//:cudart"],
        **kwargs
    )
