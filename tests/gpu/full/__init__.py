# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-V4 at full size, with random weights that are made on the GPU: what `make gpu-serve-full` serves."""
