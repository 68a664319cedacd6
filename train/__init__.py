"""Training of Hugging Face causal LMs: the ranks' side. Knows no scheduler."""
