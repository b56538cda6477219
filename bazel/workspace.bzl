# SPDX-License-Identifier: Apache-2.0
"""What the repository rules share."""

def workspace_path(repository_ctx, path, command = "make setup"):
    """Returns a path below the workspace root; fails if the command is due."""
    root = repository_ctx.path(Label("//:WORKSPACE")).dirname
    result = repository_ctx.path("%s/%s" % (root, path))
    if not result.exists:
        fail("%s is missing: run `%s` first" % (result, command))
    return result

def run(repository_ctx, command):
    """Returns what a command prints, without the final newline."""
    result = repository_ctx.execute(command)
    if result.return_code != 0:
        fail("%s failed: %s" % (command, result.stderr))
    return result.stdout.strip()
