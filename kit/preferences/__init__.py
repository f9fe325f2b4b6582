"""Which of two answers is better, by people and by judge models."""
