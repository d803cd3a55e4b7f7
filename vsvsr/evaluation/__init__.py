"""How good a result is: metrics, comparisons, picture sheets."""
