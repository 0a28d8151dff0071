# SPDX-License-Identifier: Apache-2.0
"""Imported by the bundle's serve_smoke.py: registers the plugin as vLLM's entry point would."""

from nvfp4_moe.plugin import register

register()
