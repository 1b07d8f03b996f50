"""Pages of static HTML that show results; imports what `analysis` imports; `evaluation` and scripts may import it."""
