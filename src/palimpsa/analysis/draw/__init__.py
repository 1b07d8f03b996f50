"""Figures, drawn with matplotlib from data frames."""
