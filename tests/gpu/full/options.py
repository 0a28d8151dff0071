# SPDX-License-Identifier: Apache-2.0
"""Options of vLLM's engine that the scripts of this folder share, as vllm.LLM has them."""

PLAIN = {"dtype": "bfloat16", "seed": 0, "enable_prefix_caching": False, "disable_log_stats": True}
# Small, and of a given size: engines that share a GPU cannot measure what is left of it.
SMALL_CACHE = {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 30}
# What a tiny model asks for on a GPU.
OF_TINY = {"qwen3": {}, "dsv4": {"kv_cache_dtype": "fp8"}}


def decode_graphs(sizes: list[int]) -> dict:
    """`compilation_config`: decoding steps of so many sequences are CUDA graphs, and nothing is compiled."""
    return {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes}


def flags(options: dict) -> list[str]:
    """Numbers and words, as `vllm serve` takes them."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
