# SPDX-License-Identifier: Apache-2.0
"""Commands that explain a setup or a wrong answer."""
