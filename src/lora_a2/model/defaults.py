"""Hyperparameters that suit a model, where the user gives none."""


def default_head_scale(model: str) -> float:
    return 1.0


def default_learning_rate(model: str, method: str) -> float:
    return 5e-4
