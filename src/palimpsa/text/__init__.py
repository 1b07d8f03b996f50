"""From text to token shards: what a language model is trained on, made once and read by position.

`shards` writes and reads token shards, `manifest` says what is in them and `golden` with which tokenizer, `tokenizers`
has every tokenizer behind one interface, `records` and `documents` read local files and a hub's data sets, `prepare`
tokenises in processes and goes on after a kill, `schema` and `command` are scripts/prepare_text.py. Needs no torch;
imports `config` and `runs` alone; `tasks`, `training` and scripts may import it.
"""
