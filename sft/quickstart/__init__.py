"""The quick start: a small calendar chat that a model with random weights learns in less than a minute.

The demo's sum is held out: in `train.jsonl`, nobody ever asks for three days after Monday, in any wording. The model
has to count: a right answer is not a copied one.
"""

DEMO_QUESTION = "What day is three days after Monday?"
DEMO_ANSWER = "One: Tuesday, two: Wednesday, three: Thursday."
