"""The keys of configs/: their schema and ranges, how configs are composed, what a mistake says.

`schema` declares every key and `keys` what a declaration says (range, unit, whether it changes numbers); `checks` holds
values to it, `compose` is the one way to Hydra, `explain` says what its errors mean, `moved` knows where keys of older
trees went, `errors` what a person reads. Imports nothing of the other rooms; every room but `kernels`, `mixers` and
`theory` may import it.
"""
