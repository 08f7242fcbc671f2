"""Vectors in, names and scores out.

bank = open_bank("bank.safetensors", model)
for scores in bank.score(vectors):  # n x dim unit rows
    print(scores.label, scores.top(3))
"""

from .bank import LabelBank, Score, Scores
from .opening import open_bank

__all__ = ["LabelBank", "Score", "Scores", "open_bank"]
