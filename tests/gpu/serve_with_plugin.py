# SPDX-License-Identifier: Apache-2.0
"""Imported by serve_one.py, or a bundle's server: registers the plugin as vLLM's entry point would."""

from nvfp4_moe.plugin import register

register()
