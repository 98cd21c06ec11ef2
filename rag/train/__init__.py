"""How the shipped adapter is made, from questions with known answers to a LoRA in GGUF. Nothing of the product imports this.

    pool -> examples (answers, swaps, tables) -> tokens -> lora -> convert -> an adapter's folder

Read `examples.py` first: what the model is shown is what it learns. `python -m rag.train` runs it; needs the extra `train`.
"""
