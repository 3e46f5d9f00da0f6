"""How a base is changed: LoRA, IA3, prompt tuning, all weights."""
