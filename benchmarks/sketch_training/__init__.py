"""Is a fine-tune made of codebooks as good as one of all weights, or as LoRA of equal bytes?"""
