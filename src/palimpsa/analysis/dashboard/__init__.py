"""`make dashboard`: one folder of static pages, of the committed results, run directories and offline W&B runs.

`build` makes the folder of what `committed`, `run_folders`, `wandb_files` and `progress` read; `runs`, `experiments`,
`speed` and `language` say what the views show; `files` writes it, and `privacy` looks at every text that it writes.
`watch` follows a sweep, `headless` opens the page in a browser. page/ is the page itself: HTML, CSS and JavaScript,
which reads what is written here by script tags, since a page of file:// may not fetch. `memory_page` makes a page of
one inspection of a memory.

It imports the rest of palimpsa.analysis, palimpsa.config and palimpsa.runs; `evaluation` and scripts import it. Of
wandb it takes the messages that a .wandb file consists of, late.
"""
