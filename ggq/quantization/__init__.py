"""Base GGUF -> quantized GGUF: what a preset decides (recipe), and llama-quantize at work (tool)."""
