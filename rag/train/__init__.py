"""How the shipped adapter is made, from questions with known answers to a LoRA in GGUF. Needs the extra `train`.

    pool -> examples (answers, swaps, tables) -> tokens -> lora -> convert -> an adapter's folder

Read `examples.py` first: what the model is shown is what it learns. `python -m rag.train` runs it, and makes the weights of the second
look (`pairs.py` -> `rerank.py`) and of the gate (`gate.py`) as well. Of the product only `readingroom adapters train` imports this, when
it runs: `domain.py`.
"""
