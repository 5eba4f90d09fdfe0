"""Random PEFT adapters: the LoRA side of tests and benchmarks."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def save_adapter(base: Path, out: Path, *, rank: int = 4, seed: int = 3) -> Path:
    """A random adapter on every linear of `base`, saved as PEFT saves it; returns `out`."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(str(out))
    return out
