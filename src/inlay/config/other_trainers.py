"""Settings of other trainers and their counterparts in inlay.

The names are those of transformers' TrainingArguments, PEFT's LoraConfig, bitsandbytes, TRL, LLaMA-Factory, Axolotl,
Unsloth and mlx-lm. `config explain`, the messages about unknown settings and `config import` read this one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from inlay.errors import nearest


class Counterpart(NamedTuple):
    """The settings of inlay that a setting of another trainer corresponds to."""

    settings: tuple[str, ...]
    """Dotted names; empty where inlay has no such setting."""
    differs: str = ""
    """The difference, as a clause without its full stop."""
    same: bool = False
    """True if values mean the same and can be copied."""


def _same(setting: str, *names: str, differs: str = "") -> dict[str, Counterpart]:
    return dict.fromkeys(names, Counterpart((setting,), differs, same=True))


def _like(settings: str, *names: str, differs: str = "") -> dict[str, Counterpart]:
    return dict.fromkeys(names, Counterpart(tuple(settings.split()), differs))


def _none(why: str, *names: str) -> dict[str, Counterpart]:
    return dict.fromkeys(names, Counterpart((), why))


_LONGER = "rows beyond it are dropped, or cut with data.overlong: cut"
_BATCH = (
    "train.batch_size counts the examples of a whole step over all devices; train.micro_batch_size go through the model "
    "at once and are added up to it"
)
_FOUND_OUT = "model.dtype is chosen by what this machine does well; set it to force one"
_BITS = "nf4 holds the base in 4 bits (QLoRA), int8 in 8"
_ONE_DEVICE = "the whole base lies on one device"

COUNTERPARTS: Final[Mapping[str, Counterpart]] = {
    # model
    **_same("model.base_model", "model_name_or_path", "pretrained_model_name_or_path", "base_model_name_or_path",
            "model_name", "model_id"),
    **_same("model.revision", "model_revision", "revision_of_model"),
    **_like("model.device", "device_map", "no_cuda", "use_cpu", "gpu_ids", "cuda_visible_devices", differs=_ONE_DEVICE),
    **_like("model.dtype", "fp16", "bf16", "pure_bf16", "float16", "bfloat16", "torch_dtype", "dtype",
            "mixed_precision", "precision", differs=_FOUND_OUT),
    **_like("model.matmul_precision", "tf32", differs="`high` takes TF32 on a GPU"),
    **_like("model.attention", "attn_implementation", "flash_attn", "flash_attention", "use_flash_attention_2",
            "use_flash_attn", "sdp_attention", "xformers_attention", differs="flash_attention_2, sdpa or eager"),
    **_like("model.quantization", "load_in_4bit", "load_in_8bit", "quantization_bit", "bnb_4bit_quant_type",
            "quantization_config", "bnb_config", "qlora", differs=_BITS),
    **_same("model.double_quantization", "bnb_4bit_use_double_quant", "double_quant"),
    **_like("model.compute_dtype", "bnb_4bit_compute_dtype", differs="with model.quantization: nf4"),
    **_like("model.chat_template", "template", "chat_template", "chat_template_path", "chat_template_jinja",
            differs="the tokenizer's own template is used; model.chat_template takes a Jinja file"),
    **_none("no code that comes with a model is run", "trust_remote_code"),
    # adapter
    **_like("adapter.method adapter.rank adapter.alpha adapter.dropout adapter.target_modules", "lora", "peft",
            "lora_config", "peft_config", differs="the section adapter has all of it"),
    **_like("adapter.method", "finetuning_type", "peft_type", "train_type", "full_finetuning", "full_finetune",
            differs="lora, ia3, prompt, or full for all weights"),
    **_same("adapter.rank", "r", "lora_r", "lora_rank"),
    **_same("adapter.alpha", "lora_alpha", differs="it may also be a multiple of the rank by name, such as 2x"),
    **_same("adapter.dropout", "lora_dropout"),
    **_same("adapter.rslora", "use_rslora", "peft_use_rslora"),
    **_same("adapter.dora", "use_dora", "peft_use_dora"),
    **_like("adapter.target_modules", "lora_target", "lora_target_modules", "lora_target_linear", "exclude_modules",
            "layers_to_transform", "layers_pattern",
            differs="auto is all linear layers without the head, else a list of name endings"),
    **_like("adapter.init", "init_lora_weights", "peft_init_lora_weights", "pissa_init",
            differs="default, gaussian, pissa, olora or eva"),
    **_same("adapter.start_from", "adapter_name_or_path", "lora_model_dir"),
    **_same("adapter.prompt_tokens", "num_virtual_tokens"),
    **_none("LoRA trains its own matrices and no whole module; adapter.method: full trains all weights",
            "modules_to_save", "lora_modules_to_save", "additional_target"),
    **_none("every adapted layer has the same rank and alpha", "rank_pattern", "alpha_pattern"),
    # data
    **_like("data.train", "dataset", "datasets", "dataset_name", "train_dataset", "train_file",
            differs="a file, a dataset id on the hub, or a list of them with weights"),
    **_same("data.max_rows", "max_samples", "max_train_samples", "num_samples"),
    **_like("data.eval", "eval_dataset", "test_datasets", "validation_file", differs="one file"),
    **_like("data.eval_fraction", "val_size", "val_set_size", "test_size", "validation_split",
            differs="a share between 0 and 1"),
    **_same("data.max_length", "max_seq_length", "max_seq_len", "cutoff_len", "sequence_len", "seq_len",
            "model_max_length", differs=_LONGER),
    **_same("data.workers", "preprocessing_num_workers", "dataset_num_proc", "dataset_processes", "num_proc"),
    **_like("data.workers", "dataloader_num_workers", differs="batches are made in the process that trains"),
    **_like("data.columns", "dataset_text_field", "text_field", differs="{text: COLUMN} names it"),
    **_like("data.format", "formatting", "formatting_func", "dataset_format", differs="it is found from the fields"),
    **_like("data.role_weights", "train_on_inputs", "train_on_prompt", "assistant_only_loss", "completion_only_loss",
            "roles_to_train", "response_template", "mask_prompt",
            differs="answers alone are trained; a weight for user trains those turns too"),
    **_none("rows are never packed into one sequence; a step groups rows of like length, so that little is padded",
            "packing", "sample_packing", "neat_packing", "packing_strategy"),
    **_none("a step groups rows of like length by itself", "group_by_length", "length_column_name"),
    # train
    **_like("train.batch_size train.micro_batch_size", "gradient_accumulation_steps", "grad_accumulation_steps",
            "per_device_train_batch_size", "per_device_batch_size", "train_batch_size", "micro_batch_size",
            differs=_BATCH),
    **_like("train.micro_batch_size", "auto_find_batch_size",
            differs="auto takes what fits, and what runs out of memory is computed again in smaller batches"),
    **_same("train.epochs", "num_train_epochs", "num_epochs", "n_epochs",
            differs="whole epochs; train.max_steps ends within one"),
    **_like("train.max_steps", "iters", "total_steps", "max_train_steps", "num_steps", "max_iters"),
    **_same("train.learning_rate", "lr"),
    **_same("train.lora_plus_ratio", "loraplus_lr_ratio", "lora_plus_lr_ratio"),
    **_same("train.max_grad_norm", "grad_clip", "gradient_clipping", "max_norm"),
    **_like("train.warmup_ratio train.warmup_steps", "warmup", "num_warmup_steps", "lr_warmup_steps"),
    **_like("train.schedule", "lr_scheduler_type", "lr_scheduler", "lr_schedule", "lr_scheduler_kwargs",
            differs="cosine, linear, constant, or wsd for warmup_stable_decay"),
    **_like("train.optimizer", "optim", "optim_args", differs="adamw, adamw_8bit or paged_adamw_8bit"),
    **_none("AdamW has betas 0.9 and 0.999 and epsilon 1e-8", "adam_beta1", "adam_beta2", "adam_epsilon"),
    **_like("train.engine", "use_liger_kernel", "use_liger", "enable_liger_kernel", "use_unsloth",
            differs="its hand-written engine has fused kernels of its own, and on a GPU those of Liger"),
    **_same("train.gradient_checkpointing", "activation_checkpointing", "use_gradient_checkpointing", "grad_checkpoint"),
    **_like("train.gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    **_like("train.activation_offload", "activation_offloading"),
    **_like("train.eval_steps", "eval_strategy", "evaluation_strategy", "steps_per_eval", "evals_per_epoch",
            differs="a number of steps, epoch or auto"),
    **_like("train.save_steps", "save_strategy", "saves_per_epoch", "save_every", "checkpointing_steps",
            differs="a number of steps, epoch or auto"),
    **_same("train.log_steps", "logging_steps", "steps_per_report", "log_interval"),
    **_same("train.keep_checkpoints", "save_total_limit",
            differs="the newest so many; the best and pinned ones are kept beside them"),
    **_like("train.export", "load_best_model_at_end", differs="best is the default"),
    **_like("eval.metric", "metric_for_best_model", "greater_is_better",
            differs="it decides the verdict of compare; the best step is that of the lowest held-out loss"),
    **_same("train.seed", "random_state", "data_seed", "random_seed"),
    **_none("no noise is added to the embeddings", "neftune_noise_alpha", "neft_alpha"),
    **_none("the loss is the negative log likelihood of the trained tokens", "label_smoothing_factor"),
    **_none("answers are trained (sft) and there is no preference loss; of a pair the chosen answer is trained",
            "stage", "rl", "beta", "dpo_beta", "pref_beta", "pref_loss", "loss_type"),
    **_none("each process of torchrun holds the whole base and takes a share of every step", "deepspeed", "fsdp",
            "fsdp_config", "ddp", "ddp_find_unused_parameters", "ddp_timeout", "accelerator_config"),
    # evaluation, answers, trackers, output
    **_same("eval.batch_size", "per_device_eval_batch_size", "eval_batch_size"),
    **_same("eval.max_rows", "max_eval_samples"),
    **_like("generation.temperature", "do_sample", differs="0 is greedy"),
    **_same("generation.max_new_tokens", "max_tokens", "max_gen_toks"),
    **_like("generation.stop", "stop_sequences", "stop_strings", "stop_words", "eos_token_id",
            differs="a list of texts; the template's own end of turn always ends an answer"),
    **_none("answers are greedy or sampled", "num_beams"),
    **_like("track.trackers", "report_to", "use_wandb", "wandb_mode", "tracker", "use_tensorboard", "use_mlflow",
            differs="a list of tensorboard, wandb and mlflow; metrics.jsonl is always written"),
    **_like("track.project track.trackers", "wandb_project", "mlflow_experiment_name", "project_name"),
    **_same("output.folder", "output_dir", "save_path", "adapter_path", differs="each run gets a folder of its own in it"),
    **_like("output.name", "run_name", "wandb_name", "wandb_run_name", "exp_name"),
    **_none("it is an option of train: --resume", "resume_from_checkpoint", "auto_resume_from_checkpoints", "resume"),
    **_none("it is an option of train: --fresh", "overwrite_output_dir"),
    **_none("nothing is uploaded; the folder adapter/ of a run is PEFT's as it is", "push_to_hub", "hub_model_id",
            "hub_token", "hub_strategy", "hub_private_repo"),
}  # fmt: skip


def counterpart(name: str) -> Counterpart | None:
    """The counterpart of another trainer's name, alone or as the last part of a dotted one; None for an unknown name."""
    return COUNTERPARTS.get(_plain(name))


def nearest_name(name: str) -> str | None:
    """The known name of another trainer nearest to a misspelt one; None if none is near."""
    return nearest(_plain(name), COUNTERPARTS, cutoff=0.85)


def _plain(name: str) -> str:
    return name.rpartition(".")[2].lstrip("-").replace("-", "_").lower()


def in_words(name: str, found: Counterpart) -> str:
    """`lr is train.learning_rate here`, and the difference after a colon."""
    tail = _plain(name)
    *most, last = found.settings or ("",)
    is_ = f"is {', '.join(most)}{' and ' if most else ''}{last} here" if found.settings else "has no counterpart here"
    return f"{tail} {is_}" + (f": {found.differs}" if found.differs else "")


def why_left(name: str) -> str | None:
    """Why a value of another trainer was not taken over; None where the name is not known."""
    found = counterpart(name)
    if found is None:
        return None
    return (
        found.differs
        if not found.settings
        else f"see {' and '.join(found.settings)}" + (f": {found.differs}" if found.differs else "")
    )
