"""How good a model is: perplexity, likelihoods, zero-shot tasks, and our models in lm-evaluation-harness."""
