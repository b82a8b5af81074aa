"""Training, evaluation, and what the programs have in common."""
