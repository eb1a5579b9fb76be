"""Text: tokenizers, texts from files and data sets, and the windows that models are run on."""
