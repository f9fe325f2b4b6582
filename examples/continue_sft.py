"""Continue an adapter the kit trained with TRL's supervised trainer.

Needs nothing of the kit:

    pip install peft "trl>=1.14,<1.17"
    python examples/continue_sft.py --adapter runs/mine/adapter --data mine.jsonl
"""

from shared import BF16, arguments, load_policy, load_problems
from trl import SFTConfig, SFTTrainer

args = arguments(__doc__)
model, tokenizer = load_policy(args)
examples = load_problems(args.data).map(
    lambda answer: {"completion": [{"role": "assistant", "content": answer}]},
    input_columns="answer",
    remove_columns="answer",
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=examples,  # prompt and completion: only the completion carries loss
    args=SFTConfig(
        output_dir=args.out,
        max_steps=args.steps,
        learning_rate=1e-4,  # LoRA wants about ten times that of full fine-tuning
        per_device_train_batch_size=8,
        bf16=BF16,  # TRL's default, True, fails without a GPU that has it
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    ),
)
trainer.train()
trainer.save_model()
