"""The lean Qwen3 decoder whose speed is measured: packed linears, fused kernels, a static cache."""
