"""ggq: from a Hugging Face checkpoint to a quantized GGUF that runs on this machine."""

__version__ = "0.1.0"
