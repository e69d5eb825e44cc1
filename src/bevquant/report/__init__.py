"""The report of a run: its figures, its pictures, one page that holds them."""
