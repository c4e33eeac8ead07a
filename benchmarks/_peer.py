"""The script that one would write with TRL alone, as its documentation shows it: what ftkit is compared with."""

from __future__ import annotations

from typing import Any

from _samsum import PROMPT


def load(model: str, quantised: bool, dtype: Any) -> Any:
    """Return the model, in 4-bit NF4 if asked."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, quantization_config=config if quantised else None)


def trainer(model: Any, tokenizer: Any, data: str, lora: dict[str, Any], **settings: Any) -> Any:
    """Return TRL's trainer over `data`/train.jsonl: prompt and completion, batches padded to their longest."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    dataset = load_dataset("json", data_files=f"{data}/train.jsonl", split="train", cache_dir=f"{data}/cache")
    dataset = dataset.map(
        lambda row: {"prompt": PROMPT.format(dialogue=row["dialogue"]), "completion": f" {row['summary']}"},
        remove_columns=dataset.column_names,
    )
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=f"{data}/peer",
            lr_scheduler_type="cosine",
            optim="adamw_torch",
            activation_checkpointing=False,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            logging_steps=5,
            save_steps=100,
            report_to="none",
            **settings,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    )
