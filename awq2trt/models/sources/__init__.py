"""Where weights come from: safetensors directories, GGUF files, the hub, and installed packages."""
