"""From text to token shards: what a language model is trained on, made once and read by position.

`shards` writes and reads token shards, `files` and `manifest` say what is in them, `golden` by which tokenizer;
`tokenizers` has them all behind one interface, and `own_tokenizer` finds that of shards again. `documents` and `hub`
hand out `records`, `tokenise` makes ids of them in processes, `prepare` writes what a `request` asks for and goes on
after a kill; `schema` and `command` are scripts/prepare_text.py. Needs no torch; imports `config` and `runs` alone;
`tasks`, `training` and scripts may import it.
"""
