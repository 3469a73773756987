"""One quantization method a file."""
