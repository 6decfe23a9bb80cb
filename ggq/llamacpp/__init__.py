"""All that ggq knows about llama.cpp: its pin, its build, its tools' flags and words."""
