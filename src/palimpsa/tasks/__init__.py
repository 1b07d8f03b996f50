"""What a run trains on, behind one interface (`task`): batches, loss, evaluation, stages. MQAR is the first.

Imports `kernels`, `mixers` and `config`, and knows no model, trainer or file.
"""
