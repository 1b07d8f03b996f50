"""One language model around any mixer.

`language_model` is the residual stack, `embedding` its tokens, `build` makes and checks it from a config; `table`
counts every config for docs/models.md, `data_flow` reads Figure 1 off a mixer. Imports `kernels`, `mixers` and
`config`; `training`, `sweeps`, `benchmark` and scripts may import it.
"""
