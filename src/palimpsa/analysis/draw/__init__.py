"""The figures, one module each, drawn with matplotlib from data frames: no module here reads or writes results.

figure1 to figure5 are the paper's; `capacity`, `learning_rate_sensitivity`, `operator_speed` and `training_speed` are
this repository's own; `canvas` is what all share. `palimpsa.analysis.build` imports them, and nothing else should.
"""
