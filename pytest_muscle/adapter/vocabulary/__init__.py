"""Old and new models with different tokenizers: the old one's probabilities in the new one's vocabulary.

``tokens`` says what bytes a token stands for, ``alignment`` where both models stand in the same text,
``mapping`` how a distribution over old tokens becomes one over new tokens, ``teacher`` puts them together.
"""
