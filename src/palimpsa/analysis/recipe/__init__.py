"""Tables on whether Figure 2's claim holds by other recipes, at other lengths and with interference.

Imports what `analysis` does; `analysis.text_blocks` may import it.
"""
