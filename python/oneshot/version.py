# SPDX-License-Identifier: Apache-2.0
"""The version, apart from everything else so that the wheel builder can read it."""

__version__ = "0.1.0"
