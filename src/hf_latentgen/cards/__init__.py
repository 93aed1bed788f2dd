"""Model cards, the index of all rows and the results table, rendered from `results.json`; publishing on the Hub."""
