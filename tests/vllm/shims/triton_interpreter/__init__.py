# SPDX-License-Identifier: Apache-2.0
"""Test-only: a Triton backend that compiles nothing.

With TRITON_INTERPRET=1 every kernel runs in Triton's own interpreter; this makes Triton and vLLM believe that there is
a device to run on, which otherwise needs triton-cpu built from source.
"""
