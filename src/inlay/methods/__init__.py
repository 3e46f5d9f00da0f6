"""Fine-tuning methods: LoRA, IA3, prompt tuning, full."""
