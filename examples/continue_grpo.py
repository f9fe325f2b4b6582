"""Continue an adapter the kit trained with TRL's GRPO, which clips the ratio.

Needs nothing of the kit:

    pip install peft "trl>=1.14,<1.17"
    python examples/continue_grpo.py --adapter runs/mine/adapter --data mine.jsonl
"""

from shared import BF16, arguments, correct, load_policy, load_problems
from trl import GRPOConfig, GRPOTrainer

args = arguments(__doc__)
model, tokenizer = load_policy(args)
trainer = GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=correct,
    train_dataset=load_problems(args.data),
    args=GRPOConfig(
        output_dir=args.out,
        max_steps=args.steps,
        learning_rate=1e-5,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=args.batch // 8,
        num_generations=8,
        max_completion_length=args.max_tokens,
        num_iterations=2,  # updates per rollout; with 1 the ratio is 1 and nothing is clipped
        epsilon=0.2,
        epsilon_high=0.28,
        bf16=BF16,  # TRL's default, True, fails without a GPU that has it
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    ),
)
trainer.train()
trainer.save_model()
