# SPDX-License-Identifier: Apache-2.0
"""The oracle: NVFP4 and its MoE layer from their definitions, naive, in float64, without a line of the library."""
