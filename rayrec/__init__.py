"""rayrec: SASRec meets a LoRA-tuned LLaMA, trained with Ray.

A SASRec encoder learns from who liked what, a small MLP maps its user and item vectors into soft tokens, and a
language model reads them beside the titles and answers "would this user like this item?".
"""

__version__ = "0.1.0"
