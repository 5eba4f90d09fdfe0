"""Is LLM-Neo worth it? Supervised LoRA, full-parameter distillation and Neo at equal data."""
