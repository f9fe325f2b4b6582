"""Continue an adapter with the kit's smoothed ratio (PSPO) in TRL's GRPO trainer.

It is continue_grpo.py with another trainer, and alpha in the place of both epsilons:

    pip install . "trl>=1.14,<1.17"  # in the kit's folder
    python examples/pspo_in_trl.py --adapter runs/mine/adapter --data mine.jsonl
"""

from shared import BF16, arguments, correct, load_policy, load_problems

from kit.integrations.trl import PSPOConfig, PSPOTrainer

args = arguments(__doc__)
model, tokenizer = load_policy(args)
trainer = PSPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=correct,
    train_dataset=load_problems(args.data),
    args=PSPOConfig(
        output_dir=args.out,
        max_steps=args.steps,
        learning_rate=1e-5,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=args.batch // 8,
        num_generations=8,
        max_completion_length=args.max_tokens,
        num_iterations=2,  # updates per rollout; with 1 the ratio is 1 and nothing is smoothed
        alpha=0.1,
        bf16=BF16,  # TRL's default, True, fails without a GPU that has it
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    ),
)
trainer.train()
trainer.save_model()
